"""The prompts of a workload as paths of a tree, whose nodes are drawn here. Pure."""

from preble_loadgen.trace_request import PRIVATE_ID, Segment


class PromptTree:
    """Gives out nodes. Equal nodes have equal tokens, different ones differ from their first on."""

    def __init__(self) -> None:
        self._num_nodes = 0

    def node(self, length: float) -> Segment:
        """A new node of `length` tokens, rounded, at least one."""
        self._num_nodes += 1
        return Segment(self._num_nodes, whole(length))


def private(length: float) -> Segment:
    """The end of a prompt that no other request has; its id is given with the request's place."""
    return Segment(PRIVATE_ID, whole(length))


def whole(length: float) -> int:
    """A number of tokens: rounded, at least one."""
    return max(1, round(length))
