"""Which request of a closed loop waits for which. Pure."""

from collections.abc import Sequence

from preble_loadgen.trace_request import TraceRequest


def next_turns(requests: Sequence[TraceRequest]) -> dict[int, TraceRequest]:
    """The request that the answer to another sets off, by the other's index.

    It comes `think_seconds` after that answer, however the answer ended. A request whose turn
    before is not among `requests`, cut off at their beginning, waits for nothing and is left out.
    """
    following: dict[int, TraceRequest] = {}
    last: dict[str, TraceRequest] = {}
    for request in requests:
        before = last.get(request.session)
        if request.think_seconds is not None and before is not None:
            following[before.index] = request
        if request.session:
            last[request.session] = request
    return following
