"""The plan of a batch in which some rows have tokens in a compact form.

Such a row's keys are cut where its form changes, and both pieces are attended to like any other:

    KV row        [ shared by several ][ tail, or own past and chunk            ]
    compact row   [ shared by several ][ own KV ][ own compact, newest included ]    decode
                  [ shared by several ][ own KV ][ own compact ][ chunk         ]    prefill

Pure: NumPy only.
"""

from collections.abc import Iterator, Mapping
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
from preble_worker.kv_form import KvForm


@dataclass(frozen=True, slots=True)
class CompactTails:
    """Decodes' tokens in `form`, and the position of each row's first."""

    form: KvForm
    tails: Tails
    begins: Ints


@dataclass(frozen=True, slots=True)
class CompactSpan:
    """A prefill's tokens in `form`, the first of them at position `begin`."""

    form: KvForm
    span: Span
    begin: int


@dataclass(frozen=True, slots=True)
class MixedPlan:
    """A plan whose pages hold several forms.

    Attributes:
        kv: what has keys and values; its spans begin with those of the sharing.
    """

    kv: StepPlan
    tails: list[CompactTails]
    spans: list[CompactSpan]


def find_kv_sharing(batch: Batch, *, page_tokens: int) -> Sharing:
    """As `find_sharing`; pages in a compact form are never shared."""
    return find_sharing(replace(batch, starts=kv_ends(batch)), page_tokens=page_tokens)


def kv_ends(batch: Batch) -> Ints:
    """(rows,): how many tokens have keys and values before the step."""
    return np.minimum(batch.starts, batch.tables.compact_from[batch.slots])


def plan_mixed_step(
    batch: Batch, sharing: Sharing, *, page_tokens: int, page_tokens_of: Mapping[KvForm, int]
) -> MixedPlan:
    """Full attention, with `sharing` from `find_kv_sharing`.

    Args:
        page_tokens_of: the compact forms.
    """
    first = token_offsets(batch)
    num_rows, num_decodes = len(batch.slots), batch.num_decodes
    compact_from = batch.tables.compact_from[batch.slots]
    is_compact = compact_from < batch.starts + 1
    plain = np.flatnonzero(~is_compact[:num_decodes])
    compact = np.flatnonzero(is_compact[:num_decodes])

    spans = shared_spans(batch, sharing, first, page_tokens)
    rows = [*compact.tolist(), *range(num_decodes, num_rows)]
    spans.extend(own_pasts(batch, rows, sharing.covered, kv_ends(batch), first, page_tokens))
    skipped = sharing.covered[plain]
    ends = batch.starts[plain] + 1 - skipped * page_tokens
    kv_tails = tails(batch, plain, skipped, np.zeros_like(ends), ends, page_tokens)
    kv = StepPlan(spans, list(kv_tails), list(chunks_of(batch, first)), [])
    forms = batch.tables.forms[batch.slots]
    return MixedPlan(
        kv=kv,
        tails=[
            CompactTails(form, part, compact_from[part.queries])
            for form, width in page_tokens_of.items()
            for part in _compact_tails(batch, compact[forms[compact] == form], page_tokens, width)
        ],
        spans=[
            _compact_past(batch, row, first, page_tokens, page_tokens_of)
            for row in range(num_decodes, num_rows)
            if batch.starts[row] > compact_from[row]
        ],
    )


def _compact_tails(batch: Batch, rows: Ints, page_tokens: int, width: int) -> Iterator[Tails]:
    """Of decodes `rows` what is in a form with `width` tokens to a page."""
    begins = batch.tables.compact_from[batch.slots[rows]]
    ends = batch.starts[rows] + 1 - begins
    return tails(batch, rows, begins // page_tokens, np.zeros_like(ends), ends, width)


def _compact_past(
    batch: Batch, row: int, first: Ints, page_tokens: int, page_tokens_of: Mapping[KvForm, int]
) -> CompactSpan:
    """A prefill's tokens in its compact form before the step."""
    slot = batch.slots[row]
    form = KvForm(batch.tables.forms[slot])
    begin = int(batch.tables.compact_from[slot])
    num_tokens = int(batch.starts[row]) - begin
    column = begin // page_tokens
    pages = batch.tables.pages[slot, column : column - (-num_tokens // page_tokens_of[form])]
    queries = np.arange(first[row], first[row] + batch.counts[row])
    return CompactSpan(form, Span(queries, pages.astype(np.int64), num_tokens), begin)
