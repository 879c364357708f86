"""Faults of a managed disk: each position is right, or the error names the file; a wrong byte is never served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.azure_emu.disks import checkpoints
from siterig.blockfs.core.errors import RigError
from siterig.host_faults.store_files import ManagedDisks
from tests.support.faults.applied_disk import AppliedDisk
from tests.support.faults.host_faults import armed, report

AT_WORK: list[tuple[str, set[str], bool]] = [
    ("store open error=EMFILE", {"StoreIo"}, True),
    ("store open part=base error=EIO", {"StoreIo", "StoreCorrupt"}, True),
    ("store write part=journal error=EIO occurrence=5", {"StoreIo"}, True),
    ("store write part=journal error=EIO occurrence=6 timing=after", {"StoreIo"}, True),
    ("store write error=ENOSPC occurrence=5", {"DiskFull"}, True),
    ("store write part=base error=EIO occurrence=2", set(), True),  # the blocks are written again
    ("store write part=base error=EIO", {"StoreIo"}, True),
    ("store write part=metadata error=EIO", {"StoreIo"}, True),
    ("store full_after=90KiB", {"DiskFull"}, True),
    ("store checkpoint full_after=0B", {"DiskFull"}, True),
    ("store compact full_after=0B", {"DiskFull"}, True),
    ("store write tear=true every=2", {"StoreIo"}, True),
    ("store write part=journal flip=true", {"StoreCorrupt"}, False),
    ("store write part=base flip=true occurrence=3", set(), False),
    ("store write part=checkpoint flip=true", set(), False),
    ("store write part=metadata flip=true", set(), False),
    ("store sync part=journal error=EIO", {"StoreIo"}, True),
    ("store sync part=base error=EIO occurrence=1", {"StoreIo"}, True),
    ("store checkpoint error=EIO", {"StoreIo"}, True),
    ("store checkpoint lost=true", set(), True),
    ("store compact error=EIO", {"StoreIo"}, True),
    ("store compact error=EIO timing=after", {"StoreIo"}, True),
    ("store read part=journal error=EIO", {"StoreCorrupt"}, True),
    ("store read part=base error=EIO", {"StoreCorrupt"}, True),
    ("store read part=journal flip=true", {"StoreCorrupt"}, True),
    ("store read part=metadata flip=true", {"StoreCorrupt"}, True),
    ("store write broken_chain=true occurrence=2", set(), False),
]
"""Rule, the codes that the applier meets, and True if everything is intact after the fault has ended."""
AT_REST: list[tuple[str, str | None, bool]] = [
    ("store open error=EMFILE", "Too many open files", True),
    ("store open part=journal lost=true", "journal", False),
    ("store open part=checkpoint lost=true", None, True),
    ("store read part=journal error=EIO", "journal", True),
    ("store read part=journal flip=true", "journal", True),
    ("store read part=metadata error=ENOMEM", "Cannot allocate memory", True),
    ("store sync part=journal error=EIO", "Input/output error", True),
    ("store part=journal lost=true", None, False),  # the newest one: the watermark is lower, which the applier reports
    ("store part=base lost=true", "base", False),
    ("store part=checkpoint lost=true", None, True),
    ("store part=metadata lost=true", "managed disk is corrupt", False),
    ("store part=journal flip.bits=3", None, False),
    ("store part=base flip.bits=3 start=4KiB", None, False),
    ("store part=checkpoint flip=true", None, False),
    ("store part=metadata flip=true", "managed disk is corrupt", False),
    ("store broken_chain=true", "comes next", False),
]
"""Rule, a word of the error at the opening, and True if everything is intact after the fault has ended."""


def make_files_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 100_000)
    monkeypatch.setattr("siterig.azure_emu.scrub.journal.TORN_WAIT_S", 0.0)
    monkeypatch.setattr("siterig.azure_emu.disks.base_image.REREAD_DELAY_S", 0.0)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 10)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    make_files_small(monkeypatch)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> AppliedDisk:
    with pytest.MonkeyPatch.context() as patched:
        make_files_small(patched)
        made = AppliedDisk(tmp_path_factory.mktemp("template"))
        made.begin()
        made.store.close()
    return made


@pytest.fixture
def applied(template: AppliedDisk, tmp_path: Path) -> Iterator[AppliedDisk]:
    made = template.copied(tmp_path)
    yield made
    made.store.close()


@pytest.mark.parametrize(("words", "errors", "intact"), AT_WORK, ids=[row[0] for row in AT_WORK])
async def test_a_fault_is_an_error_or_known_damage_and_never_a_wrong_byte(
    words: str, errors: set[str], intact: bool, applied: AppliedDisk
) -> None:
    async with armed([ManagedDisks(applied.folder.parent)], words) as injector:
        applied.work()
        applied.check()
        assert (await report(injector)).injections, "the fault did not happen"
    opens = True
    try:
        applied.reopen()
    except RigError as exc:
        assert str(applied.folder) in exc.message
        opens = False
    else:
        applied.work()
    whole = applied.check()
    assert set(applied.errors) == errors
    assert (opens and whole and applied.complete()) == intact


@pytest.mark.parametrize(("words", "error", "intact"), AT_REST, ids=[row[0] for row in AT_REST])
async def test_a_fault_at_rest_is_named_at_the_opening_or_known_damage(
    words: str, error: str | None, intact: bool, applied: AppliedDisk
) -> None:
    applied.work()
    applied.store.close()
    async with armed([ManagedDisks(applied.folder.parent)], words) as injector:
        if error is None:
            applied.reopen()
        else:
            with pytest.raises(RigError, match=re.escape(error)):
                applied.reopen()
        assert (await report(injector)).injections or "checkpoint" in words
    opens = True
    try:
        applied.reopen()
    except RigError as exc:
        assert str(applied.folder) in exc.message
        opens = False
    whole = applied.check()
    assert (opens and whole and applied.complete()) == intact
