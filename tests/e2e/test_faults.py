"""Short forms of what `make faults` does to a live cluster; what takes how long is shown there."""

import pytest
from faults.rows import hang, leave, outage
from faults.trial import Row, Trial


@pytest.mark.parametrize("row", [hang.STOPPED, leave.ROW, outage.ROW], ids=lambda row: row.name)
async def test_what_a_fault_must_not_cost(row: Row) -> None:
    outcome = await row.measure(Trial(quick=True, peer=None, say=lambda what: None))
    assert outcome.failures == (), outcome.seen
