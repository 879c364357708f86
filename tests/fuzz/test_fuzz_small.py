"""Damaged files beside the change log: one clear error, or exactly what the format's page says."""

from __future__ import annotations

from tests.fuzz import small_damage, small_targets
from tests.fuzz.run import fuzz


def test_dm_log_writes() -> None:
    seen = fuzz(small_damage.dm_log, small_targets.dm_log, share=0.1)
    assert {"good", "DmLogCorrupt"} <= seen.keys()


def test_disk_state() -> None:
    seen = fuzz(small_damage.disk_state, small_targets.disk_state, share=0.1)
    assert {"good", "DiskStateCorrupt", "StateVersion"} <= seen.keys()
