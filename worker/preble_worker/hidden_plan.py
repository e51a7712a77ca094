"""The plan of a batch in which some rows have tokens in the hidden form.

Such a row's keys are cut where its form changes, and both pieces are attended to like any other:

    KV row       [ shared by several ][ tail, or own past and chunk           ]
    hidden row   [ shared by several ][ own KV ][ own hidden, newest included ]    decode
                 [ shared by several ][ own KV ][ own hidden ][ chunk         ]    prefill

Pure: NumPy only.
"""

from dataclasses import dataclass, replace

import numpy as np

from preble_worker.attention_plan import (
    Ints,
    Sharing,
    Span,
    StepPlan,
    Tails,
    chunks_of,
    find_sharing,
    own_pasts,
    shared_spans,
    tails,
    token_offsets,
)
from preble_worker.batch import Batch


@dataclass(frozen=True, slots=True)
class MixedPlan:
    """A plan whose pages hold two forms.

    Attributes:
        kv: what has keys and values; its spans begin with those of the sharing.
        tails, tail_begins: decodes' hidden tokens, and the position of each row's first.
        spans, span_begins: prefills' hidden tokens, and the position of the first of each.
    """

    kv: StepPlan
    tails: list[Tails]
    tail_begins: list[Ints]
    spans: list[Span]
    span_begins: list[int]


def find_kv_sharing(batch: Batch, *, page_tokens: int) -> Sharing:
    """As `find_sharing`; pages in the hidden form are never shared."""
    return find_sharing(replace(batch, starts=kv_ends(batch)), page_tokens=page_tokens)


def kv_ends(batch: Batch) -> Ints:
    """(rows,): how many tokens have keys and values before the step."""
    return np.minimum(batch.starts, batch.tables.compact_from[batch.slots])


def plan_mixed_step(
    batch: Batch, sharing: Sharing, *, page_tokens: int, hidden_page_tokens: int
) -> MixedPlan:
    """Full attention, with `sharing` from `find_kv_sharing`."""
    first = token_offsets(batch)
    num_rows, num_decodes = len(batch.slots), batch.num_decodes
    ends_of_kv = kv_ends(batch)
    compact_from = batch.tables.compact_from[batch.slots]
    is_hidden = compact_from < batch.starts + 1
    plain = np.flatnonzero(~is_hidden[:num_decodes])
    hidden = np.flatnonzero(is_hidden[:num_decodes])

    spans = shared_spans(batch, sharing, first, page_tokens)
    rows = [*hidden.tolist(), *range(num_decodes, num_rows)]
    spans.extend(own_pasts(batch, rows, sharing.covered, ends_of_kv, first, page_tokens))
    skipped = sharing.covered[plain]
    ends = batch.starts[plain] + 1 - skipped * page_tokens
    kv_tails = tails(batch, plain, skipped, np.zeros_like(ends), ends, page_tokens)
    kv = StepPlan(spans, list(kv_tails), list(chunks_of(batch, first)), [])

    begins = compact_from[hidden]
    ends = batch.starts[hidden] + 1 - begins
    zeros = np.zeros_like(ends)
    own = list(tails(batch, hidden, begins // page_tokens, zeros, ends, hidden_page_tokens))
    pasts = [
        (_hidden_past(batch, row, first, page_tokens, hidden_page_tokens), int(compact_from[row]))
        for row in range(num_decodes, num_rows)
        if batch.starts[row] > compact_from[row]
    ]
    return MixedPlan(
        kv=kv,
        tails=own,
        tail_begins=[compact_from[part.queries] for part in own],
        spans=[span for span, _ in pasts],
        span_begins=[begin for _, begin in pasts],
    )


def _hidden_past(
    batch: Batch, row: int, first: Ints, page_tokens: int, hidden_page_tokens: int
) -> Span:
    """A prefill's tokens in the hidden form before the step."""
    slot = batch.slots[row]
    begin = int(batch.tables.compact_from[slot])
    num_tokens = int(batch.starts[row]) - begin
    column = begin // page_tokens
    pages = batch.tables.pages[slot, column : column - (-num_tokens // hidden_page_tokens)]
    queries = np.arange(first[row], first[row] + batch.counts[row])
    return Span(queries, pages.astype(np.int64), num_tokens)
