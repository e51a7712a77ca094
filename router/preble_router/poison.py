"""Which requests bring down the workers they run on. Pure.

Whatever ran on a worker when it failed is suspected; who was there at two failures is guilty:

    w0 fails with {a, b, c}  ->  all three are suspected, and go on on different workers
    w2 fails with {b, d}     ->  b was at both: refused. d is suspected. a and c go on

What failed once fails again at the same token, so at the second failure only who has shown no
token since the first is guilty, and only if nobody else was in the same case: the shell keeps
suspects on different workers until each has shown a token. Some more progress is an alibi for the
first failure too, and so is a request like it that ends well.

Who came to a worker that said nothing any more has not silenced it, but may have brought it down
since. That shows when the worker is heard of again: as a newer process, and the former one died.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Any

from preble.types import SamplingParams

ALIBI_TOKENS = 16
"""Output of an attempt after which a failure is not taken to be the request's doing."""
SUSPECTED_SECONDS = 60.0
POISONED_SECONDS = 600.0
"""For how long requests like it are refused."""
MOST_REMEMBERED = 4096
"""Suspects, and poisoned requests, each; the oldest are forgotten first."""
HOPELESS = 3
"""Failures after which those that were at all of them are refused together."""
_SETTINGS = [each.name for each in fields(SamplingParams) if each.name != "seed"]


def fingerprint(tokens: bytes, sampling: SamplingParams, *, namespace: str, tenant: str) -> bytes:
    """16 bytes, equal for a request and its repetition.

    The seed is left out: a client that states none is given another one at each try.
    """
    key = repr((tenant, namespace, [getattr(sampling, name) for name in _SETTINGS])).encode()
    return blake2b(tokens, digest_size=16, key=blake2b(key, digest_size=32).digest()).digest()


@dataclass(slots=True)
class _Suspicion:
    until: float
    failures: set[str] = field(default_factory=set)


class PoisonBook:
    """What is known of requests by fingerprint. Bounded in size and time."""

    __slots__ = ("_came_late", "_poisoned_until", "_suspicions")

    def __init__(self) -> None:
        self._suspicions: OrderedDict[bytes, _Suspicion] = OrderedDict()
        self._poisoned_until: OrderedDict[bytes, float] = OrderedDict()
        self._came_late: OrderedDict[tuple[str, bytes], tuple[int, float]] = OrderedDict()

    @property
    def has_suspects(self) -> bool:
        """Whether `clear` could do anything."""
        return bool(self._suspicions)

    @property
    def has_poisoned(self) -> bool:
        """Whether `is_poisoned` could be true of anything."""
        return bool(self._poisoned_until)

    def failed(self, failure: str, running: Iterable[tuple[bytes, int]], *, now: float) -> None:
        """A worker failed with these requests on it.

        Args:
            failure: names it; the same one may be told again, when silence turns into death. Of a
                process's end: worker id and epoch.
            running: fingerprint and output tokens of the present attempt, per request.
        """
        progress: dict[bytes, int] = {}
        for mark, num_tokens in running:
            if not self.is_poisoned(mark, now=now):  # or known for it already
                progress[mark] = max(num_tokens, progress.get(mark, 0))
        for mark, num_tokens in progress.items():
            self._suspect(mark, failure, has_alibi=num_tokens >= ALIBI_TOKENS, now=now)
        for mark in self._guilty(progress):
            del self._suspicions[mark]
            self._poisoned_until[mark] = now + POISONED_SECONDS
            _forget_oldest(self._poisoned_until)

    def came_late(self, mark: bytes, worker_id: str, epoch: int, *, now: float) -> None:
        """It was sent to a process that was silent already, and broke off there."""
        self._came_late[worker_id, mark] = epoch, now + SUSPECTED_SECONDS
        self._came_late.move_to_end((worker_id, mark))
        _forget_oldest(self._came_late)

    def heard_of(self, worker_id: str, epoch: int, *, now: float) -> None:
        """A worker speaks, anew or again: a newer process than came to be silent means a death."""
        died: dict[int, list[tuple[bytes, int]]] = {}
        for name, mark in list(self._came_late):
            if name == worker_id:
                former, until = self._came_late.pop((name, mark))
                if former < epoch and now < until:
                    died.setdefault(former, []).append((mark, 0))
        for former, running in died.items():
            self.failed(f"{worker_id}/{former}", running, now=now)

    def _suspect(self, mark: bytes, failure: str, *, has_alibi: bool, now: float) -> None:
        suspicion = self._suspicions.get(mark)
        if suspicion is None or has_alibi or suspicion.until <= now:
            suspicion = self._suspicions[mark] = _Suspicion(now)
        suspicion.failures.add(failure)
        suspicion.until = now + SUSPECTED_SECONDS
        self._suspicions.move_to_end(mark)
        _forget_oldest(self._suspicions)

    def _guilty(self, progress: Mapping[bytes, int]) -> list[bytes]:
        counts = {m: len(self._suspicions[m].failures) for m in progress if m in self._suspicions}
        most = max(counts.values(), default=0)
        worst = [mark for mark, count in counts.items() if count == most]
        if most >= HOPELESS:
            return worst
        mute = [mark for mark in worst if not progress[mark]]
        return mute if most == HOPELESS - 1 and len(mute) == 1 else []

    def clear(self, mark: bytes) -> None:
        """A request like it has ended well."""
        self._suspicions.pop(mark, None)

    def is_poisoned(self, mark: bytes, *, now: float) -> bool:
        """Whether to refuse it."""
        until = self._poisoned_until.get(mark)
        if until is None:
            return False
        if until <= now:
            del self._poisoned_until[mark]
            return False
        return True

    def check(self) -> None:
        """Assert the bounds, and that nobody is both suspected and refused."""
        assert len(self._suspicions) <= MOST_REMEMBERED
        assert len(self._poisoned_until) <= MOST_REMEMBERED
        assert len(self._came_late) <= MOST_REMEMBERED
        assert all(suspicion.failures for suspicion in self._suspicions.values())
        assert not self._suspicions.keys() & self._poisoned_until.keys()


def _forget_oldest(book: OrderedDict[Any, Any]) -> None:
    if len(book) > MOST_REMEMBERED:
        book.popitem(last=False)
