"""Finds stop strings in a text that comes in pieces, and holds back no more than it must.

Each stop string is followed by its Knuth-Morris-Pratt automaton: the state is how many of its
first characters the text ends with. So the longest state is exactly what must be held back, and
what is found does not depend on where the text was cut into pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """`text` may be given out. `stopped`: it ends right before a stop string, nothing follows."""

    text: str
    stopped: bool


class StopStrings:
    """The search through one output. The stop string that is complete first ends it; of several
    complete at the same character, the longest.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would stop everything"
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    def push(self, text: str) -> StopMatch:
        """What may be given out now that `text` has come."""
        buffer = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            found = 0
            for automaton in self._automata:
                if automaton.step(character):
                    found = max(found, len(automaton.stop))
            if found:
                self._held = ""
                return StopMatch(buffer[: end - found], stopped=True)
        keep = len(buffer) - max((automaton.state for automaton in self._automata), default=0)
        self._held = buffer[keep:]
        return StopMatch(buffer[:keep], stopped=False)

    def finish(self) -> str:
        """What was held back for a stop string that will not come."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """One stop string. `state` characters of it are the end of the text so far."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self._fallback = _fallbacks(stop)

    def step(self, character: str) -> bool:
        """Reads one more character; whether the stop string is complete."""
        state = self.state
        while state and self.stop[state] != character:
            state = self._fallback[state - 1]
        if self.stop[state] == character:
            state += 1
        self.state = state
        return state == len(self.stop)


def _fallbacks(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is its end too."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table
