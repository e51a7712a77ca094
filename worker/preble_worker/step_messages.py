"""One turn of the engine loop as messages: for each link its own requests' outputs, and the rest.

The hot path of the wire: a line here runs once per generated token.
"""

from collections.abc import Iterator, Sequence

from preble.types import Phase
from preble.v1 import worker_pb2 as pb
from preble.wire import cache_events_to_wire, load_to_wire, output_to_wire
from preble_worker.loop_messages import LoopReport
from preble_worker.request_book import RequestBook

_PHASES = {
    Phase.STARTING: pb.PHASE_STARTING,
    Phase.IDLE: pb.PHASE_IDLE,
    Phase.COMPUTING: pb.PHASE_COMPUTING,
    Phase.DRAINING: pb.PHASE_DRAINING,
}


def step_messages(
    report: LoopReport, book: RequestBook, links: Sequence[int]
) -> Iterator[tuple[int, pb.WorkerMessage]]:
    """The message of each of `links`. Settles the report's outputs in `book`."""
    outputs = _outputs_by_link(report, book)
    shared = _shared_step(report)
    for link in links:
        message = pb.WorkerMessage(step=shared)
        message.step.outputs.extend(outputs.get(link, ()))
        yield link, message


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


def _outputs_by_link(report: LoopReport, book: RequestBook) -> dict[int, list[pb.RequestOutput]]:
    by_link: dict[int, list[pb.RequestOutput]] = {}
    for outputs in (report.others, report.decoded):
        for output in outputs:
            owner = book.settle(output)
            if owner is not None:
                message = output_to_wire(output)
                message.request_id = owner.request_id
                by_link.setdefault(owner.link, []).append(message)
    return by_link
