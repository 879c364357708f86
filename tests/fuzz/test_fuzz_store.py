"""Damaged files of a managed disk give one clear error or the contents that the format page describes, never wrong bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.fuzz import store_damage, store_targets
from tests.fuzz.run import fuzz


def test_damaged_documents_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.meta, lambda made, folder: store_targets.meta(*made, folder), share=0.06)
    assert {"good disk.json", "good progress", "good pin", "StoreCorrupt", "StoreVersion"} <= seen.keys()


def test_damaged_records_of_mounted_points_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.note, store_targets.note, share=0.06)
    assert {"good", "not read"} <= seen.keys()


def test_damaged_maps_of_the_base_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.base_map, store_targets.base_map, share=0.05)
    assert {"good", "StoreCorrupt"} <= seen.keys()


def test_damaged_intents_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.intent, store_targets.intent, share=0.05)
    assert {"good", "nothing to do", "StoreCorrupt"} <= seen.keys()


def test_damaged_journals_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.store, lambda made, folder: store_targets.store(*made, folder), share=0.25)
    assert {"end, opened", "broken, not opened"} <= seen.keys()


def test_damaged_checkpoints_match_the_strict_reader() -> None:
    seen = fuzz(store_damage.checkpoint, lambda made, folder: store_targets.checkpoint(*made, folder), share=0.15)
    assert {"good", "good and passed over"} <= seen.keys()


@pytest.mark.parametrize(
    ("at", "number"),
    [(48, 1 << 40), (72, 0), (72, 1 << 40), (72, (1 << 64) - 1)],
    ids=["size", "none", "newer", "no-number"],
)
def test_a_checkpoint_with_impossible_values_is_ignored(at: int, number: int, tmp_path: Path) -> None:
    good = store_damage.good_store(0)
    name = max(name for name in good.files if name.startswith("checkpoints/"))
    raw = good.files[name]
    bad = store_damage.seal_checkpoint(raw[:at] + struct.pack("<Q", number) + raw[at + 8 :])
    assert store_targets.checkpoint(good, good.files | {name: bad}, tmp_path) == "good and passed over"
