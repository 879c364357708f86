"""The inputs of the corpus are read as expected, and so are inputs that do not fit into a file of the corpus."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.dm_log_writes import DmLogReader
from siterig.blockfs.changelog.segment import SegmentReader, scan_tail
from siterig.blockfs.core import boot
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.errors import RigError
from tests.fuzz import damage, store_damage
from tests.fuzz import strict_log as log
from tests.fuzz.corpus import CORPUS, TARGETS
from tests.fuzz.log_targets import bounded_work

CASES = sorted(case for target in TARGETS for case in (CORPUS / target).iterdir())


@pytest.fixture(params=["this boot", "another boot"])
def any_boot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Replace the boot id, so that the result for a file of the corpus is the same on every machine."""
    store_damage.good_store.cache_clear()
    if request.param == "another boot":
        source = tmp_path / "boot_id"
        source.write_text("0b5e55ed-0000-4000-8000-000000000002")
        monkeypatch.setattr(boot, "SOURCE", source)
    yield
    store_damage.good_store.cache_clear()


@pytest.mark.usefixtures("any_boot")
@pytest.mark.parametrize("case", CASES, ids=[str(case.relative_to(CORPUS)) for case in CASES])
def test_each_input_of_the_corpus_is_read_as_the_strict_reader_reads_it(case: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    outcome = TARGETS[case.parent.name](case, folder)
    if "good" in case.name:  # otherwise a new format could make all files bad for one reason
        assert outcome == "end, opened" or outcome.startswith("good")


def test_the_corpus_has_inputs_for_every_target() -> None:
    assert {case.name for case in CORPUS.iterdir()} == TARGETS.keys()


def test_guest_bytes_that_look_like_records_take_bounded_time(tmp_path: Path) -> None:
    """Each such record claims all bytes after it as its payload, and has a number that a later record may have."""
    path = tmp_path / "os.000001.hrl"
    head = log.make_header(disk_id=damage.DISK_ID, first_seq=1, disk_size_bytes=damage.DISK_BYTES, boot_id=current_boot_id())
    count = 400
    fakes = [
        struct.pack("<IBBHQQQQQIQI", log.RECORD_MAGIC, log.WRITE, 0, 64, 2 + at, 1, 0, 0, left, left, 0, 0)
        for at in range(count)
        if (left := (count - 1 - at) * 64) >= 0
    ]
    path.write_bytes(head + b"torn" * 16 + b"".join(fakes))
    with SegmentReader(path) as reader, bounded_work(path.stat().st_size), pytest.raises(RigError) as failed:
        scan_tail(reader)
    assert failed.value.code == "LogCorrupt"
    assert "too many bytes after it look like records" in failed.value.message


def test_opening_a_named_pipe_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "os.000001.hrl"
    os.mkfifo(path)
    for read in (SegmentReader, DmLogReader):
        with pytest.raises(RigError, match="is no regular file, but a FIFO"):
            read(path)
