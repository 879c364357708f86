"""The second share of the seeds."""

from __future__ import annotations

import pytest

from tests.support.rigs.simulated_seeds import check_share


@pytest.mark.slow
def test_seeds_keep_all_promises_and_meet_every_fault_and_operation() -> None:
    check_share(1)
