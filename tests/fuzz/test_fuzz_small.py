"""Damaged files beside the change log: one clear error, or exactly what the format's page says."""

from __future__ import annotations

from siterig.blockfs.core.boot import current_boot_id
from tests.fuzz import small_damage, small_targets
from tests.fuzz.run import fuzz


def test_dm_log_writes() -> None:
    seen = fuzz(small_damage.dm_log, small_targets.dm_log, share=0.08)
    assert {"good", "DmLogCorrupt"} <= seen.keys()


def test_disk_state() -> None:
    seen = fuzz(small_damage.disk_state, small_targets.disk_state, share=0.08)
    assert {"good", "DiskStateCorrupt", "StateVersion"} <= seen.keys()


def test_dirty_file() -> None:
    seen = fuzz(small_damage.dirty_file, small_targets.dirty_file, share=0.05)
    assert {"good, None", "good, LogOverflow", "DirtyCorrupt"} <= seen.keys()


def test_vhd_footer() -> None:
    seen = fuzz(small_damage.vhd, small_targets.vhd, share=0.05)
    assert {"good", "VhdCorrupt", "VhdUnsupported"} <= seen.keys()


def test_maps_of_a_top() -> None:
    boot_id = current_boot_id()
    seen = fuzz(lambda pick: small_damage.top_maps(pick, boot_id), small_targets.top_maps, share=0.05)
    assert {"of this boot", "of another boot", "DiskCorrupt"} <= seen.keys()
