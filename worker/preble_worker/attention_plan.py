"""Which tokens of a batch attend to which pages, decided once per step and used by every layer.

Attention over a set of keys can be computed in parts: each part yields an output and the
log-sum-exp of its scores, and two parts merge into one by these. So each request's keys are cut
where work can be shared or a mask avoided:

    request 1   [ shared by 1, 2, 3 ][ shared by 1, 2 ][ own past ][ chunk ]    prefill
    request 2   [ shared by 1, 2, 3 ][ shared by 1, 2 ][ tail, newest included ]  decode
    request 3   [ shared by 1, 2, 3 ][ tail, newest included ]                    decode

*Span*: pages that lie wholly before their queries; no mask, one product for all of them. The
chunk is causal within itself and takes its keys from the step, not from the pool. Tails of decodes
differ in length, so they are padded and masked, in *buckets* of similar length.

Physical pages are shared only between requests whose tokens up to there are equal, so equal page
numbers are all that is needed to find what is shared. Pure: NumPy only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble_worker.batch import Batch

Ints = npt.NDArray[np.int64]

MIN_SAVED_TOKENS = 128
"""A shared span pays for its own product when it saves at least so many tokens' keys."""

MIN_BUCKET_PAGES = 8
"""Decode tails up to this length share a bucket; above it, those within a factor of two."""


@dataclass(frozen=True, slots=True)
class SharedPages:
    """Pages `pages` of several rows: a run of the batch's tree of prefixes."""

    rows: Ints
    pages: Ints


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the rows of a batch share pages.

    Attributes:
        runs: outer ones before inner ones.
        covered: per row, the number of its leading pages that lie in `runs`.
    """

    runs: list[SharedPages]
    covered: Ints


@dataclass(frozen=True, slots=True)
class Span:
    """`num_tokens` keys in `pages`, all of them before the queries.

    Attributes:
        queries: indices into the batch's tokens.
    """

    queries: Ints
    pages: Ints
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Tails:
    """Decodes whose remaining keys are padded to one length.

    Attributes:
        queries: (n,) indices into the batch's tokens.
        pages: (n, num_pages), what a shorter tail lacks is filled with page 0.
        begins, ends: (n,) the keys each may see, counted from its first page.
    """

    queries: Ints
    pages: Ints
    begins: Ints
    ends: Ints


@dataclass(frozen=True, slots=True)
class Chunks:
    """`num` prefill chunks of `count` tokens each, one after another from token `begin`."""

    begin: int
    num: int
    count: int


@dataclass(frozen=True, slots=True)
class WindowedChunk:
    """A prefill chunk whose tokens see only their last `window` keys.

    Attributes:
        begin, count: its tokens in the batch.
        pages: where its keys lie, its own included.
        offset: keys in `pages` before the chunk's first token.
    """

    begin: int
    count: int
    pages: Ints
    offset: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything one layer computes: each token is in one of `tails`, `chunks` or
    `windowed_chunks`, and in any number of `spans`."""

    spans: list[Span]
    tails: list[Tails]
    chunks: list[Chunks]
    windowed_chunks: list[WindowedChunk]


def find_sharing(batch: Batch, *, page_tokens: int) -> Sharing:
    """The runs of pages that several rows share and that are full before this step."""
    covered = np.zeros(len(batch.slots), dtype=np.int64)
    full = batch.starts // page_tokens
    runs: list[SharedPages] = []
    width = int(full.max(initial=0))
    table = batch.tables.pages[batch.slots, :width]
    # Rows, their first page that is in no run yet, and how many pages they are known to share.
    todo = [(np.flatnonzero(full > 0), 0, 0)]
    while todo:
        rows, begin, depth = todo.pop()
        for group in _equal_at(table, rows, depth):
            end = depth + _common(table[group, depth : int(full[group].min())])
            saved = (end - begin) * page_tokens * (len(group) - 1)
            pays = saved >= MIN_SAVED_TOKENS
            if pays:
                runs.append(SharedPages(group, table[group[0], begin:end].astype(np.int64)))
                covered[group] = end
            todo.append((group[full[group] > end], end if pays else begin, end))
    return Sharing(runs, covered)


def _equal_at(table: npt.NDArray[np.int32], rows: Ints, depth: int) -> Iterator[Ints]:
    """Groups of at least two `rows` with the same page at `depth`."""
    if len(rows) < 2:
        return
    pages = table[rows, depth]
    if (pages == pages[0]).all():
        yield rows
        return
    order = np.argsort(pages, kind="stable")
    cuts = np.flatnonzero(np.diff(pages[order])) + 1
    for group in np.split(rows[order], cuts):
        if len(group) > 1:
            yield np.sort(group)


def _common(table: npt.NDArray[np.int32]) -> int:
    """Number of leading columns in which all rows agree."""
    differs = (table != table[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else table.shape[1]


def plan_step(batch: Batch, sharing: Sharing, *, page_tokens: int) -> StepPlan:
    """Full attention: every token sees all keys up to its own."""
    first = token_offsets(batch)
    prefills = range(batch.num_decodes, len(batch.slots))
    spans = shared_spans(batch, sharing, first, page_tokens)
    spans.extend(own_pasts(batch, prefills, sharing.covered, batch.starts, first, page_tokens))
    decodes = np.arange(batch.num_decodes)
    skipped = sharing.covered[decodes]
    ends = batch.starts[decodes] + 1 - skipped * page_tokens
    found = tails(batch, decodes, skipped, np.zeros_like(ends), ends, page_tokens)
    return StepPlan(spans, list(found), list(chunks_of(batch, first)), [])


def plan_windowed_step(batch: Batch, *, window: int, page_tokens: int) -> StepPlan:
    """Sliding window: a token at position p sees the keys of positions p − window + 1 … p.

    Windows of different requests seldom begin at the same page, so nothing is shared.
    """
    first = token_offsets(batch)
    lowest = np.maximum(batch.starts + 1 - window, 0)
    skipped = lowest // page_tokens
    decodes = np.arange(batch.num_decodes)
    begins = (lowest - skipped * page_tokens)[decodes]
    ends = (batch.starts + 1 - skipped * page_tokens)[decodes]
    found = list(tails(batch, decodes, skipped[decodes], begins, ends, page_tokens))
    chunks = []
    for row in range(batch.num_decodes, len(batch.slots)):
        end = int(batch.starts[row] + batch.counts[row])
        pages = _row_pages(batch, row, int(skipped[row]), end, page_tokens)
        offset = int(batch.starts[row] - skipped[row] * page_tokens)
        chunks.append(WindowedChunk(int(first[row]), int(batch.counts[row]), pages, offset))
    return StepPlan([], found, [], chunks)


def token_offsets(batch: Batch) -> Ints:
    """Index of each row's first token among the batch's tokens."""
    return np.cumsum(batch.counts) - batch.counts


def _tokens_of(rows: Ints, first: Ints, batch: Batch) -> Ints:
    if rows[-1] < batch.num_decodes:
        return rows
    parts = [np.arange(first[row], first[row] + batch.counts[row]) for row in rows.tolist()]
    return np.concatenate(parts)


def _row_pages(batch: Batch, row: int, first_page: int, end: int, page_tokens: int) -> Ints:
    pages = batch.tables.pages[batch.slots[row], first_page : -(-end // page_tokens)]
    return pages.astype(np.int64)


def shared_spans(batch: Batch, sharing: Sharing, first: Ints, page_tokens: int) -> list[Span]:
    """The runs of `sharing`, in their order."""
    return [
        Span(_tokens_of(run.rows, first, batch), run.pages, len(run.pages) * page_tokens)
        for run in sharing.runs
    ]


def own_pasts(
    batch: Batch, rows: Iterable[int], covered: Ints, ends: Ints, first: Ints, page_tokens: int
) -> Iterator[Span]:
    """What each of `rows` alone has from page covered[row] up to token ends[row], where it has
    anything, for all its tokens."""
    for row in rows:
        end, skipped = int(ends[row]), int(covered[row])
        num_tokens = end - skipped * page_tokens
        if num_tokens > 0:
            queries = np.arange(first[row], first[row] + batch.counts[row])
            pages = _row_pages(batch, row, skipped, end, page_tokens)
            yield Span(queries, pages, num_tokens)


def chunks_of(batch: Batch, first: Ints) -> Iterator[Chunks]:
    """Neighbouring chunks of one length are computed together."""
    counts = batch.counts[batch.num_decodes :]
    if not len(counts):
        return
    cuts = np.flatnonzero(np.diff(counts)) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(counts)], strict=True):
        yield Chunks(int(first[batch.num_decodes + begin]), end - begin, int(counts[begin]))


def tails(
    batch: Batch, rows: Ints, skipped: Ints, begins: Ints, ends: Ints, page_tokens: int
) -> Iterator[Tails]:
    """The keys of decodes `rows` from page `skipped` on, in buckets of similar length."""
    if not len(rows):
        return
    num_pages = -(-ends // page_tokens)
    sizes = np.ceil(np.log2(np.maximum(num_pages, MIN_BUCKET_PAGES))).astype(np.int64)
    for size in np.unique(sizes).tolist():
        some = np.flatnonzero(sizes == size)
        columns = np.arange(int(num_pages[some].max()))
        exists = columns < num_pages[some, None]
        logical = np.where(exists, skipped[some, None] + columns, 0)
        pages = batch.tables.pages[batch.slots[rows[some], None], logical]
        known = np.where(exists, pages, 0).astype(np.int64)
        yield Tails(rows[some], known, begins[some], ends[some])
