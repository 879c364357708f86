"""Damaged files beside the change log give one clear error, or exactly the contents that the format page describes."""

from __future__ import annotations

from siterig.blockfs.core.boot import current_boot_id
from tests.fuzz import log_targets, small_damage, small_targets
from tests.fuzz.run import fuzz


def test_damaged_dm_logs_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.dm_log, small_targets.dm_log, share=0.08)
    assert {"good", "DmLogCorrupt"} <= seen.keys()


def test_damaged_disk_states_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.disk_state, small_targets.disk_state, share=0.08)
    assert {"good", "DiskStateCorrupt", "StateVersion"} <= seen.keys()


def test_damaged_dirty_files_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.dirty_file, small_targets.dirty_file, share=0.05)
    assert {"good, None", "good, LogOverflow", "DirtyCorrupt"} <= seen.keys()


def test_damaged_vhd_footers_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.vhd, small_targets.vhd, share=0.05)
    assert {"good", "VhdCorrupt", "VhdUnsupported"} <= seen.keys()


def test_damaged_overlay_maps_match_the_strict_reader() -> None:
    boot_id = current_boot_id()
    seen = fuzz(lambda pick: small_damage.top_maps(pick, boot_id), small_targets.top_maps, share=0.05)
    assert {"of this boot", "of another boot", "DiskCorrupt"} <= seen.keys()


def test_damaged_envelopes_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.envelope, small_targets.envelope, share=0.03)
    assert {"good", "PartCorrupt"} <= seen.keys()


def test_damaged_bundles_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.bundle, log_targets.bundle, share=0.03)
    assert {"good", "BundleCorrupt"} <= seen.keys()


def test_damaged_files_of_the_vaults_keys_match_the_strict_reader() -> None:
    seen = fuzz(small_damage.vault_keys, small_targets.vault_keys, share=0.03)
    assert {"good", "KeysUnreadable", "StateVersion"} <= seen.keys()
