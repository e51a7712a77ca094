"""Pairs of lengths without a clock, CSV: `num_prefill_tokens` and `num_decode_tokens` of a request,
by a header line that names them; other columns are ignored. Gzipped or not.
"""

import csv
import gzip
from pathlib import Path

from preble.errors import ConfigError

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
_GZIP_MAGIC = b"\x1f\x8b"


def read_length_pairs(path: Path) -> list[tuple[int, int]]:
    """(prompt, output) tokens, in the file's order, without those that have none of either.

    Raises:
        ConfigError: the file cannot be read, or a line is bad.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content[:2] == _GZIP_MAGIC else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    rows = csv.DictReader(text.splitlines())
    if not set(COLUMNS) <= set(rows.fieldnames or ()):
        raise ConfigError(f"{path} has no columns {' and '.join(COLUMNS)}")
    pairs = []
    for row in rows:
        try:
            prompt, output = (int(row[name]) for name in COLUMNS)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {rows.line_num}: {error}") from error
        if prompt > 0 and output > 0:
            pairs.append((prompt, output))
    return pairs
