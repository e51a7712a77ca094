"""Which workers there are: the addresses this router tries, and the sessions it has.

    address --link--> session of worker "a", epoch 7     one session per worker id:
    address --link--> (no Hello yet, or rejected)        the newest process has it

Addresses come from the configuration (kept for ever) or from workers that announce themselves
(forgotten when they cannot be reached for a while).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from preble.errors import WorkerNotFound
from preble.events import CacheSnapshot
from preble.v1 import worker_pb2 as pb
from preble_router.config import RouterConfig
from preble_router.dial import Dial
from preble_router.liveness import Change
from preble_router.session import Session
from preble_router.worker_link import LinkOptions, LinkRejected, WorkerLink

_log = logging.getLogger(__name__)

FORGET_SECONDS = 60.0
"""An announced address without a session for longer is forgotten."""


class MembershipListener(Protocol):
    """Whom the membership tells, in the order in which it happened."""

    def worker_joined(self, session: Session) -> None:
        """A worker is linked, what it holds will follow."""

    def worker_ready(self, session: Session) -> None:
        """Its first snapshot has come."""

    def worker_lost(self, session: Session, reason: str) -> None:
        """Its stream is over, or another process took its name."""

    def worker_silent(self, session: Session) -> None:
        """Its step loop says nothing, and it is ejected."""

    def worker_lags(self, session: Session) -> None:
        """It is silent too, and gets requests because too many are. Told at every check."""

    def worker_speaks(self, session: Session) -> None:
        """A silent worker is back."""

    def worker_step(self, session: Session, step: pb.StepOutput) -> None:
        """A step of a worker."""

    def worker_snapshot(self, session: Session, snapshot: CacheSnapshot) -> None:
        """What a worker's cache holds."""


@dataclass(slots=True)
class Member:
    """One address.

    Attributes:
        static: configured, never forgotten.
        unreachable_at: since when it has no session; meaningless while it has one.
        worker_id: of its last session, "" before the first.
    """

    address: str
    link: WorkerLink
    static: bool
    unreachable_at: float
    session: Session | None = None
    worker_id: str = ""


class Membership:
    """Owns the links. All methods belong to the event loop's thread."""

    def __init__(
        self,
        config: RouterConfig,
        listener: MembershipListener,
        *,
        rng: random.Random,
        clock: Callable[[], float],
        dial: Dial,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.members: dict[str, Member] = {}
        self._config = config
        self._listener = listener
        self._clock = clock
        self._options = LinkOptions(router_id=config.router_id, dial=dial, clock=clock)
        self._rng = rng
        self._removed_epochs: dict[str, int] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.request_limit_tokens: int | None = None
        self.limits_differ = False

    def add(self, address: str, *, static: bool = False) -> None:
        """Link to `address`; a known one that has no session is tried again at once."""
        member = self.members.get(address)
        if member is not None:
            member.static |= static
            if member.session is not None and member.session.liveness.suspect:
                # A worker announces itself when it has no link: the silent stream is dead.
                self._end(member.session, "silent, and announces itself anew")
            if member.session is None:
                member.link.retry_now()
            return
        link = WorkerLink(address, self, self._options, rng=self._rng)
        self.members[address] = Member(address, link, static, unreachable_at=self._clock())

    def remove(self, worker_id: str) -> None:
        """Forget a worker and take nothing more from this process of it.

        It may announce itself again and again; only a new process of that name is used.

        Raises:
            WorkerNotFound: no member bears this id.
        """
        members = [m for m in self.members.values() if m.worker_id == worker_id]
        if not members:
            raise WorkerNotFound(f"no worker is called {worker_id!r}")
        session = self.sessions.get(worker_id)
        if session is not None:
            self._removed_epochs[worker_id] = session.spec.epoch
            session.draining = True  # No fault of its requests.
            self._end(session, "removed by the operator")
        for member in members:
            self._forget(member)

    def session(self, worker_id: str) -> Session:
        """The worker's present session.

        Raises:
            WorkerNotFound: it has none.
        """
        if worker_id not in self.sessions:
            raise WorkerNotFound(f"no worker called {worker_id!r} is linked")
        return self.sessions[worker_id]

    def check(self) -> None:
        """Call a few times a second: notices silence, forgets who stays away."""
        now = self._clock()
        for session in list(self.sessions.values()):
            if session.liveness.check(now=now) is Change.SUSPECT:
                _log.warning("worker %s has gone silent", session.worker_id)
        self._eject(now)
        for member in list(self.members.values()):
            gone = member.session is None and now - member.unreachable_at > FORGET_SECONDS
            if gone and not member.static:
                _log.info("forgetting the worker at %s: unreachable", member.address)
                self._forget(member)

    def _eject(self, now: float) -> None:
        """Takes silent workers out of use, the longest silent first, but never more than half.

        Where more are silent, the fault may well be the router's or the network's, and those that
        still spoke last are a better guess than nobody. A lone worker has no such choice.
        """
        silent = [session for session in self.sessions.values() if session.liveness.suspect]
        if not silent:
            return
        silent.sort(key=lambda s: (-s.liveness.silent_seconds(now=now), s.worker_id))
        most = max(1, len(self.sessions) // 2)
        for session in silent[:most]:
            if not session.ejected:
                session.ejected = True
                self.count_ready()
                self._listener.worker_silent(session)
        for session in silent[most:]:
            if session.ejected:
                self._readmit(session)
            self._listener.worker_lags(session)

    def _readmit(self, session: Session) -> None:
        session.ejected = False
        self.count_ready()
        self._listener.worker_speaks(session)

    def count_ready(self) -> None:
        """Recomputes what requests fit; call when a session's readiness changed."""
        limits = {s.request_limit_tokens for s in self.sessions.values() if s.ready}
        self.request_limit_tokens = max(limits, default=None)
        self.limits_differ = len(limits) > 1

    async def close(self) -> None:
        """Ends every link; none of their tasks is left afterwards."""
        for session in list(self.sessions.values()):
            self._end(session, "the router stops")
        for member in list(self.members.values()):
            self._forget(member)
        if self._ending:
            await asyncio.wait(self._ending)

    # What the links tell.

    def link_up(self, link: WorkerLink, hello: pb.Hello) -> Session:
        """Takes a worker in, unless it is not ours or a newer process has its name."""
        session = Session(
            link.address,
            hello,
            link.send,
            silence_seconds=self._config.silence_seconds,
            now=self._clock(),
        )
        self._admit(session)
        self._listener.worker_joined(session)
        member = self.members[link.address]
        member.session = session
        member.worker_id = session.worker_id
        self.sessions[session.worker_id] = session
        self.count_ready()
        _log.info(
            "worker %s at %s is linked, epoch %d",
            session.worker_id,
            session.address,
            session.spec.epoch,
        )
        return session

    def link_step(self, session: Session, step: pb.StepOutput) -> None:
        """Hands a step on; a silent worker is back with it."""
        self._hear(session, next_step_seconds=step.next_step_seconds)
        self._listener.worker_step(session, step)

    def link_snapshot(self, session: Session, snapshot: CacheSnapshot) -> None:
        """Hands a snapshot on; with the first one the worker can be used."""
        self._hear(session)
        self._listener.worker_snapshot(session, snapshot)
        if not session.known:
            session.known = True
            self.count_ready()
            self._listener.worker_ready(session)

    def _hear(self, session: Session, *, next_step_seconds: float = 0.0) -> None:
        """The step loop has spoken."""
        change = session.liveness.heard(next_step_seconds=next_step_seconds, now=self._clock())
        if change is Change.BACK:
            _log.info("worker %s speaks again", session.worker_id)
            session.renew()
            self._readmit(session)

    def link_down(self, session: Session, reason: str) -> None:
        """The stream is over."""
        if not session.ended:
            self._end(session, reason)

    def _admit(self, session: Session) -> None:
        spec = session.spec
        if spec.model != self._config.model:
            raise LinkRejected(
                f"worker {spec.worker_id} serves model {spec.model!r}, "
                f"this router {self._config.model!r}"
            )
        if spec.page_tokens != self._config.page_tokens:
            raise LinkRejected(
                f"worker {spec.worker_id} has pages of {spec.page_tokens} tokens, "
                f"this router of {self._config.page_tokens}"
            )
        if self._removed_epochs.get(spec.worker_id) == spec.epoch:
            raise LinkRejected(f"worker {spec.worker_id} was removed by the operator")
        rival = self.sessions.get(spec.worker_id)
        if rival is None:
            return
        if spec.epoch <= rival.spec.epoch:
            raise LinkRejected(
                f"worker {spec.worker_id} is linked at {rival.address} already "
                f"(epoch {rival.spec.epoch}, here {spec.epoch})"
            )
        _log.warning(
            "worker %s at %s is replaced by a newer process at %s",
            spec.worker_id,
            rival.address,
            session.address,
        )
        self._end(rival, f"a newer process at {session.address} took its name")

    def _end(self, session: Session, reason: str) -> None:
        session.ended = True
        del self.sessions[session.worker_id]
        member = self.members[session.address]
        member.session = None
        member.unreachable_at = self._clock()
        member.link.drop()
        self.count_ready()
        self._listener.worker_lost(session, reason)

    def _forget(self, member: Member) -> None:
        del self.members[member.address]
        task = member.link.stop()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
