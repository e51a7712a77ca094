"""One turn of the engine loop as messages: for each link its own requests' outputs, and the rest.

The hot path of the wire: it runs once per generated token. Between two steps of a decoding request
only position and token change, so each has one message that is filled in anew and copied.
"""

from collections.abc import Iterator, Sequence

from preble.page_keys import TOKEN_BYTES
from preble.types import Phase, RequestOutput
from preble.v1 import worker_pb2 as pb
from preble.wire import cache_events_to_wire, load_to_wire, logprobs_to_wire, output_to_wire
from preble_worker.loop_messages import LoopReport
from preble_worker.outputs import NO_TOKENS, TokenColumns
from preble_worker.request_book import RequestBook

_PHASES = {
    Phase.STARTING: pb.PHASE_STARTING,
    Phase.IDLE: pb.PHASE_IDLE,
    Phase.COMPUTING: pb.PHASE_COMPUTING,
    Phase.DRAINING: pb.PHASE_DRAINING,
}

OutputsByLink = dict[int, list[pb.RequestOutput]]


class StepMessages:
    """Turns reports into messages; settles in `book` what ends with them."""

    def __init__(self, book: RequestBook) -> None:
        self._book = book
        # The message of each decoding request's next token, and its link (0 when that is gone).
        self._next: dict[str, tuple[int, pb.RequestOutput]] = {}
        # Those messages for the rows of `_request_ids`, which the scheduler hands out as the same
        # list for as long as the same requests decode.
        self._request_ids = NO_TOKENS.request_ids
        self._rows: list[pb.RequestOutput] = []
        self._rows_by_link: OutputsByLink = {}

    def of(
        self, report: LoopReport, links: Sequence[int]
    ) -> Iterator[tuple[int, pb.WorkerMessage]]:
        """The message of each of `links`. To be used up before the next report."""
        others = self._others(report.others)
        self._fill_in(report.decoded)
        shared = _shared_step(report)
        for link in links:
            message = pb.WorkerMessage(step=shared)
            outputs = message.step.outputs
            outputs.extend(others.get(link, ()))
            if report.decoded:
                outputs.extend(self._rows_by_link.get(link, ()))
            yield link, message

    def _others(self, outputs: list[RequestOutput]) -> OutputsByLink:
        by_link: OutputsByLink = {}
        for output in outputs:
            owner = self._book.settle(output)
            if output.finish_reason is not None:
                self._next.pop(output.request_id, None)
            if owner is not None:
                message = output_to_wire(output)
                message.request_id = owner.request_id
                by_link.setdefault(owner.link, []).append(message)
        return by_link

    def _fill_in(self, decoded: TokenColumns) -> None:
        if not decoded:
            return
        if decoded.request_ids is not self._request_ids:
            self._gather_rows(decoded)
        packed = decoded.tokens.tobytes()
        ends = range(TOKEN_BYTES, len(packed) + 1, TOKEN_BYTES)
        for row, position, end in zip(self._rows, decoded.positions.tolist(), ends, strict=True):
            row.position = position
            row.tokens = packed[end - TOKEN_BYTES : end]
        for index, logprobs in decoded.logprobs.items():
            logprobs_to_wire(logprobs, self._rows[index])

    def _gather_rows(self, decoded: TokenColumns) -> None:
        self._request_ids = decoded.request_ids
        self._rows, self._rows_by_link = [], {}
        for key, cached_tokens in zip(decoded.request_ids, decoded.cached_tokens, strict=True):
            found = self._next.get(key)
            if found is None:
                found = self._next[key] = self._message_of(key, cached_tokens)
            link, message = found
            self._rows.append(message)
            self._rows_by_link.setdefault(link, []).append(message)

    def _message_of(self, key: str, cached_tokens: int) -> tuple[int, pb.RequestOutput]:
        owner = self._book.owner(key)
        if owner is None:
            return 0, pb.RequestOutput()
        return owner.link, pb.RequestOutput(
            request_id=owner.request_id, attempt=owner.attempt, cached_tokens=cached_tokens
        )


def _shared_step(report: LoopReport) -> pb.StepOutput:
    return pb.StepOutput(
        step=report.step,
        phase=_PHASES[report.phase],
        step_seconds=report.step_seconds,
        predicted_step_seconds=report.predicted_step_seconds,
        next_step_seconds=report.next_step_seconds,
        cache=cache_events_to_wire(report.cache) if report.cache else None,
        load=load_to_wire(report.load),
    )
