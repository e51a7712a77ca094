"""Options that say what a router does when more comes than its workers can do."""

from typing import Annotated, Any

from pydantic import Field

from preble_deploy.sources import Flag, Settings

OVERLOAD = "Overload"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OverloadOptions(Settings):
    """Which requests are refused, and which are cut off."""

    max_queue_seconds: Annotated[
        Seconds, Flag(metavar="SECONDS", panel=OVERLOAD, default="no limit")
    ] = Field(
        0.0,
        description="A request whose first token is predicted to take longer is refused at once "
        "with 429 and Retry-After.",
    )
    default_timeout: Annotated[Seconds, Flag(metavar="SECONDS", panel=OVERLOAD, default="none")] = (
        Field(
            0.0,
            description="Deadline of a request that states none (X-Request-Timeout, or a gRPC "
            "deadline). One that is predicted to miss its deadline is refused at once with 429 "
            "and Retry-After.",
        )
    )

    slow_reader_seconds: Annotated[Seconds, Flag(metavar="SECONDS", panel=OVERLOAD)] = Field(
        60.0,
        description="A stream of which the client has read nothing for so long, though there is "
        "output, is cut off and its worker freed; 0 for never.",
    )

    max_tree_pages: Annotated[int, Field(ge=1), Flag(metavar="PAGES", panel=OVERLOAD)] = Field(
        1 << 24,
        description="Cache pages of which the router knows who holds them: 8 bytes each, and for "
        "every branch of the tree 300 and 85 for each worker that holds it (10 bytes per page of "
        "long documents, 120 of short prompts). Beyond it, it forgets what nobody holds, then what "
        "was used long ago, of the namespaces that have most.",
    )

    @property
    def overload_config(self) -> dict[str, Any]:
        """These options as fields of `RouterConfig`."""
        return {
            "max_queue_seconds": self.max_queue_seconds,
            "default_timeout_seconds": self.default_timeout,
            "slow_reader_seconds": self.slow_reader_seconds,
            "max_tree_pages": self.max_tree_pages,
        }
