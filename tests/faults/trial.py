"""One row of the table: a fault, what is to be reached, and how it is measured.

A row's `measure` is given a `Trial` and does the fault to whichever cluster that makes: ours, and
a peer's where the row can be measured there.
"""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.clusters import FaultyCluster, PeerCluster
from faults.load import Load


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen, in words and figures, and whether it is what is to be reached."""

    passed: bool
    seen: str
    failures: tuple[str, ...] = ()


@dataclass(slots=True)
class Trial:
    """How to measure a row once.

    Attributes:
        quick: the short form.
        peer: virtual environment of `sglang-router` when it is measured, None for ours.
        say: shows what goes on now.
        soak_minutes, rounds: 0 for what the form has.
    """

    quick: bool
    peer: Path | None
    say: Callable[[str], None]
    soak_minutes: float = 0.0
    rounds: int = 0

    def pick(self, short: Any, long: Any) -> Any:
        """The short form's figure, or the long one's."""
        return short if self.quick else long

    @property
    def is_peer(self) -> bool:
        return self.peer is not None

    @contextmanager
    def cluster(self, **options: Any) -> Iterator[FaultyCluster]:
        """A fresh one, ready; `options` are those of `FaultyCluster`."""
        self.say("starting")
        with tempfile.TemporaryDirectory(prefix="faults-") as name:
            directory = Path(name)
            made = (
                FaultyCluster(directory, **options)
                if self.peer is None
                else PeerCluster(directory, environment=self.peer, **options)
            )
            with made as cluster:
                yield cluster


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        name: for `--only`.
        no_peer: why `sglang-router` cannot take part; "" where it can.
    """

    name: str
    fault: str
    to_reach: str
    measure: Callable[[Trial], Awaitable[Outcome]]
    no_peer: str = ""


def failures(*loads: Load) -> tuple[str, ...]:
    """What went wrong, the most frequent first, a line each."""
    counts: dict[str, int] = {}
    for load in loads:
        for answer in load.answers:
            if answer.failed or answer.wrong:
                what = answer.error or "wrong text"
                if answer.failed and answer.wrong:
                    what += ", after wrong text"
                counts[what] = counts.get(what, 0) + 1
    return tuple(f"{n} x {what}" for what, n in sorted(counts.items(), key=lambda i: -i[1]))
