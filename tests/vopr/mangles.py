"""What may become of a worker's messages on their way to a router, each thing once."""

from vopr.network import Mangle

from preble.v1 import worker_pb2 as pb

Messages = list[pb.WorkerMessage]


def events_lost(message: pb.WorkerMessage) -> Messages | None:
    if not message.step.HasField("cache"):
        return None
    message.step.ClearField("cache")
    return [message]


def last_events_lost(message: pb.WorkerMessage) -> Messages | None:
    return events_lost(message)


def events_doubled(message: pb.WorkerMessage) -> Messages | None:
    if not message.step.HasField("cache"):
        return None
    return [message, _events_of(message)]


def events_of_a_wrong_number(message: pb.WorkerMessage) -> Messages | None:
    """They come as if of the next batch, and then once more as they should."""
    if not message.step.HasField("cache"):
        return None
    wrong = _events_of(message)
    wrong.step.cache.seq += 1
    return [wrong, message]


def event_corrupted(message: pb.WorkerMessage) -> Messages | None:
    if not message.step.HasField("cache"):
        return None
    for event in message.step.cache.events:
        if event.WhichOneof("event") == "stored":
            event.stored.path = event.stored.path[:-8] + b"nonsense"
            return [message]
    return None


def digest_corrupted(message: pb.WorkerMessage) -> Messages | None:
    if not message.HasField("step"):
        return None
    message.step.load.tree_key_sum ^= 1 << 17
    return [message]


def events_reordered() -> list[Mangle]:
    """One batch comes after the next."""
    kept = Messages()

    def events_reordered(message: pb.WorkerMessage) -> Messages | None:
        if not message.step.HasField("cache"):
            return None
        kept.append(_events_of(message))
        return events_lost(message)

    def events_come_late(message: pb.WorkerMessage) -> Messages | None:
        return [message, kept.pop()] if message.step.HasField("cache") else None

    return [events_reordered, events_come_late]


def events_delayed() -> list[Mangle]:
    """One batch comes with a later step, perhaps when others have come."""
    kept = Messages()

    def events_delayed(message: pb.WorkerMessage) -> Messages | None:
        if not message.step.HasField("cache"):
            return None
        kept.append(_events_of(message))
        return events_lost(message)

    def events_come_late(message: pb.WorkerMessage) -> Messages | None:
        is_step = message.HasField("step") and not message.step.HasField("cache")
        return [message, kept.pop()] if is_step else None

    return [events_delayed, events_come_late]


def output_lost(message: pb.WorkerMessage) -> Messages | None:
    if not message.step.outputs:
        return None
    del message.step.outputs[0]
    return [message]


def output_shifted(message: pb.WorkerMessage) -> Messages | None:
    if not message.step.outputs:
        return None
    message.step.outputs[0].position += 1
    return [message]


def logprobs_lost(message: pb.WorkerMessage) -> Messages | None:
    for output in message.step.outputs:
        if output.logprobs:
            output.ClearField("logprobs")
            return [message]
    return None


def step_doubled(message: pb.WorkerMessage) -> Messages | None:
    return [message, message] if message.step.outputs else None


def step_lost(message: pb.WorkerMessage) -> Messages | None:
    return [] if message.step.outputs else None


def _events_of(message: pb.WorkerMessage) -> pb.WorkerMessage:
    """A message of a step's cache events alone."""
    events = pb.WorkerMessage()
    events.CopyFrom(message)
    events.step.ClearField("outputs")
    return events


OF_EVENTS: tuple[Mangle, ...] = (
    events_lost,
    events_doubled,
    events_of_a_wrong_number,
    event_corrupted,
    digest_corrupted,
)
OF_OUTPUTS: tuple[Mangle, ...] = (
    output_lost,
    output_shifted,
    logprobs_lost,
    step_doubled,
    step_lost,
)
