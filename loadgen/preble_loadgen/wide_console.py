"""Standard output for tables."""

from rich.console import Console

TABLE_COLUMNS = 120


def wide_console() -> Console:
    """One whose rows are never folded, since scripts read them too."""
    console = Console()
    return console if console.width >= TABLE_COLUMNS else Console(width=TABLE_COLUMNS)
