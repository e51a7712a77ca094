"""Whose requests the scheduler is running: routers name theirs independently of each other.

The scheduler knows each attempt under a key of this book, "link/serial/request id", so that two
routers may use equal ids, and an attempt never meets its predecessor.
"""

from dataclasses import dataclass, replace

from preble.types import RequestOutput, WorkerRequest


@dataclass(frozen=True, slots=True)
class Owner:
    """The link that a scheduler key belongs to, and the request as that link calls it."""

    link: int
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Admission:
    """`request` under its scheduler key, and the key of the older attempt that it replaces."""

    request: WorkerRequest
    replaced: str | None


class RequestBook:
    """Every attempt that was admitted and has not ended."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner] = {}
        # Key of each request that is wanted, by link and request id. An attempt that was replaced
        # or withdrawn is in `_owners` alone until its end is reported.
        self._wanted: dict[int, dict[str, str]] = {}
        self._num_admitted = 0

    def __len__(self) -> int:
        return len(self._owners)

    def admit(self, link: int, request: WorkerRequest) -> Admission | None:
        """Enter `request`; None if this attempt of it, or a later one, is already there."""
        wanted = self._wanted.setdefault(link, {})
        replaced = wanted.get(request.request_id)
        if replaced is not None and self._owners[replaced].attempt >= request.attempt:
            return None
        self._num_admitted += 1
        key = f"{link}/{self._num_admitted}/{request.request_id}"
        self._owners[key] = Owner(link, request.request_id, request.attempt)
        wanted[request.request_id] = key
        return Admission(replace(request, request_id=key), replaced)

    def withdraw(self, link: int, request_id: str, attempt: int) -> str | None:
        """Key of the wanted request, if it is at `attempt` or older; it is wanted no more."""
        key = self._wanted.get(link, {}).get(request_id)
        if key is None or self._owners[key].attempt > attempt:
            return None
        del self._wanted[link][request_id]
        return key

    def owner(self, key: str) -> Owner | None:
        """Whose request `key` is; None when its link is gone."""
        return self._owners.get(key)

    def settle(self, output: RequestOutput) -> Owner | None:
        """Who is to get `output`; None when its link is gone. Forgets a request that ended."""
        key = output.request_id
        if output.finish_reason is None:
            return self._owners.get(key)
        owner = self._owners.pop(key, None)
        if owner is not None and self._wanted[owner.link].get(owner.request_id) == key:
            del self._wanted[owner.link][owner.request_id]
        return owner

    def release(self, link: int) -> list[str]:
        """Forget all requests of `link`; returns their keys, for the scheduler to cancel."""
        self._wanted.pop(link, None)
        keys = [key for key, owner in self._owners.items() if owner.link == link]
        for key in keys:
            del self._owners[key]
        return keys

    def check(self) -> None:
        """Assert the book's invariants."""
        for link, wanted in self._wanted.items():
            for request_id, key in wanted.items():
                owner = self._owners[key]
                assert (owner.link, owner.request_id) == (link, request_id)
        assert all(owner.link in self._wanted for owner in self._owners.values())
