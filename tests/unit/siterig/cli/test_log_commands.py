"""``siterig log``: what is printed, what comes back, and that an image is refused, whole, or said to be partial."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from siterig.blockfs.changelog.segment import HEADER_BYTES, RecordType
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.layers.layer import RawLayer
from siterig.cli.app import program
from tests.support.disks.log_row import DISK_BYTES, DISK_ID, START, LogRow
from tests.support.other_user import folder_of_other_user, link_of_other_user, needs_root


@pytest.fixture
def row(tmp_path: Path) -> LogRow:
    """Two segments: a WRITE and a FLUSH; a TAG and a WRITE of part of a sector."""
    row = LogRow(tmp_path)
    row.write(0, b"\x01" * 512)
    row.do((RecordType.FLUSH, 0, 0, 0))
    row.rotate()
    row.tag("before \x1b[31mred")
    row.write(1000, b"\x02" * 24)
    row.close()
    return row


def siterig(*arguments: object) -> Any:
    return CliRunner().invoke(program(["log"]), ["log", *map(str, arguments)])


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_show_prints_headers_and_records_in_order(row: LogRow) -> None:
    result = siterig("show", *reversed(row.paths))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"{row.paths[0]}: disk {DISK_ID} (64 KiB), generation 2, log from 1, begun 1970-01-01T00:00:00.000000Z "
        f"in boot {current_boot_id()}"
    )
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "43"], ["2", "46"]]
    assert lines[6].split("\t")[3:] == ["TAG", "0", "0", "before \\x1b[31mred ApplicationConsistent"]
    assert lines[7].split() == ["4", "52", "1970-01-01T00:00:00.000000Z", "WRITE", "1000", "24", "-"]


def test_show_picks_types_and_stops_at_the_limit(row: LogRow) -> None:
    result = siterig("show", *row.paths, "--type", "write", "--type", "tag", "--limit", "2", "--json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert documents[0]["segment"] == {
        "file": str(row.paths[0]),
        "disk_id": DISK_ID,
        "generation": 2,
        "stream": "log",
        "first_seq": 1,
        "boot_id": current_boot_id(),
        "created": "1970-01-01T00:00:00.000000Z",
        "disk_size_bytes": DISK_BYTES,
    }
    records = [document["record"] for document in documents if "record" in document]
    assert records[0] == {
        "seq": 1,
        "position": 43,
        "time": "1970-01-01T00:00:00.000000Z",
        "type": "WRITE",
        "offset": 0,
        "length": 512,
    }
    assert [record["type"] for record in records] == ["WRITE", "TAG"]
    assert (records[1]["tag"]["name"], records[1]["tag"]["kind"]) == ("before \x1b[31mred", "ApplicationConsistent")


def test_show_reports_a_disk_that_was_closed_cleanly(row: LogRow) -> None:
    row.rotate()
    row.close_cleanly()
    result = siterig("show", *row.paths, "--type", "flush")
    flushes = [line for line in result.stdout.splitlines() if "\tFLUSH\t" in line]
    assert [line.endswith("\tclosed cleanly") for line in flushes] == [False, True]


def test_show_goes_as_far_as_the_log_is_good(row: LogRow) -> None:
    last = row.paths[1]
    last.write_bytes(last.read_bytes()[:-1])
    result = siterig("show", *row.paths)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 7)
    end = last.stat().st_size - 87
    assert result.stderr == f"siterig: note: {last}: torn tail of 87 bytes at byte {end}\n"
    flip(row.paths[0], HEADER_BYTES + 64)
    result = siterig("show", row.paths[0])
    assert result.exit_code == 1
    assert result.stderr.endswith("record checksum does not match, but good records follow (LogCorrupt)\n")


def test_verify_gives_a_line_a_file(row: LogRow) -> None:
    result = siterig("verify", *reversed(row.paths))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{row.paths[0]}: ok: records 1 to 2, positions 43 to 46, 512 B written",
        f"{row.paths[1]}: ok: records 3 to 4, positions 49 to 52, 24 B written",
        "total: 2 files, all ok: 4 records, positions 43 to 52, 536 B written",
    ]


def test_verify_names_preallocated_space(row: LogRow) -> None:
    """The newest segment of a log in use, the one before it until it is cut, and one in which nothing was begun."""
    for path in row.paths:
        path.write_bytes(path.read_bytes() + bytes(3 << 20))
    fresh = row.paths[1].with_name("os.000003.hrl")
    fresh.write_bytes(bytes(1 << 20))
    result = siterig("verify", *row.paths, fresh)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{row.paths[0]}: ok: records 1 to 2, positions 43 to 46, 512 B written; 3 MiB preallocated at its end",
        f"{row.paths[1]}: ok: records 3 to 4, positions 49 to 52, 24 B written; 3 MiB preallocated at its end",
        f"{fresh}: ok: no records; 1 MiB preallocated at its end",
        "total: 3 files, all ok: 4 records, positions 43 to 52, 536 B written",
    ]
    documents = [json.loads(line) for line in siterig("verify", *row.paths, fresh, "--json").stdout.splitlines()]
    assert [document.get("preallocated_bytes") for document in documents] == [3 << 20, 3 << 20, 1 << 20, None]
    assert documents[-1] == {
        "total": {
            "files": 3,
            "bad_files": 0,
            "records": 4,
            "first_position": 43,
            "last_position": 52,
            "written_bytes": 536,
            "torn_bytes": 0,
            "preallocated_bytes": 7 << 20,
        }
    }


def test_verify_distinguishes_a_torn_record_from_the_space_behind_it(row: LogRow) -> None:
    last = row.paths[1]
    end = last.stat().st_size
    last.write_bytes(last.read_bytes() + b"torn" + bytes(2 << 20))
    lines = siterig("verify", *row.paths).stdout.splitlines()
    assert lines[1].endswith(f"24 B written; torn tail of 4 bytes at byte {end}; 2 MiB preallocated at its end")
    assert lines[2].endswith("536 B written, torn tail of 4 bytes")


def test_verify_names_a_missing_segment_once(row: LogRow) -> None:
    row.rotate()
    row.write(0, b"x" * 8)
    row.close()
    result = siterig("verify", row.paths[0], row.paths[2])
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if "is missing (" in line] == [
        f"{row.paths[2]}: begins with record 5; the segment with record 3 is missing (LogGap)"
    ]
    assert result.stdout.splitlines()[-1].startswith("total: 2 files, 1 of them bad: ")


def test_verify_names_the_damage_and_fails(row: LogRow) -> None:
    row.rotate()
    row.close()
    last = row.paths[2]
    last.write_bytes(last.read_bytes() + b"torn")
    flip(row.paths[0], HEADER_BYTES + 64)
    result = siterig("verify", *row.paths)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{row.paths[0]}: change log is corrupt at byte 128: record checksum does not match, but good records follow "
        "(LogCorrupt)",
        f"{row.paths[1]}: ok: records 3 to 4, positions 49 to 52, 24 B written",
        f"{last}: ok: no records; torn tail of 4 bytes at byte 128",
        "total: 3 files, 1 of them bad: 2 records, positions 49 to 52, 24 B written, torn tail of 4 bytes",
    ]


def test_replay_reports_the_applied_records(row: LogRow, tmp_path: Path) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(START)
    result = siterig("replay", *row.paths, "--onto", image)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{image}: applied records 1 to 4, up to position 52: 2 WRITE, 1 FLUSH, 1 TAG\n"
    assert image.read_bytes() == bytes(row.data)


def test_replay_stops_at_a_position(row: LogRow, tmp_path: Path) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(START)
    result = siterig("replay", *row.paths, "--onto", image, "--upto", "51")
    assert result.stdout == f"{image}: applied records 1 to 3, up to position 49: 1 WRITE, 1 FLUSH, 1 TAG\n"
    assert image.read_bytes() == row.states[49]
    result = siterig("replay", *row.paths, "--onto", image, "--upto", "42")
    assert result.stdout == f"{image}: nothing to apply\n"
    result = siterig("replay", *row.paths, "--onto", image, "--upto", "60")
    assert result.stderr == "siterig: note: the log ends with position 52, before 60\n"


def test_replay_of_a_log_that_begins_later_names_the_image_that_it_needs(row: LogRow, tmp_path: Path) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(START)
    result = siterig("replay", row.paths[1], "--onto", image)
    assert result.stderr == (
        "siterig: note: the log begins with record 3: the image must be the disk as it was before that\n"
    )


@pytest.mark.slow
def test_replay_touches_nothing_if_the_log_is_bad_or_the_image_in_use(row: LogRow, tmp_path: Path) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(START)
    with image.open("rb") as held, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=held) as other:
        result = siterig("replay", *row.paths, "--onto", image)
        other.communicate()
    assert (result.exit_code, result.stderr) == (
        1,
        f"siterig: error: {image}: is in use by cat ({other.pid}) (ImageBusy)\n",
    )
    flip(row.paths[1], row.paths[1].stat().st_size - 1)
    row.rotate()
    row.close()
    result = siterig("replay", *row.paths, "--onto", image)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"but {row.paths[2]} follows it (LogCorrupt)\n")
    assert image.read_bytes() == START


def test_replay_onto_a_file_that_is_no_image_is_bad_input(row: LogRow, tmp_path: Path) -> None:
    result = siterig("replay", *row.paths, "--onto", tmp_path / "none")
    assert (result.exit_code, result.stderr) == (2, f"siterig: error: {tmp_path}/none: does not exist (ImageUnusable)\n")


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (KeyboardInterrupt(), (130, "siterig: interrupted")),
        (
            OSError(28, "No space left on device"),
            (1, "siterig: error: {}: cannot be written: No space left on device (DiskFull)"),
        ),
    ],
)
def test_a_replay_that_is_interrupted_reports_a_partial_image(
    row: LogRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, outcome: tuple[int, str]
) -> None:
    image = tmp_path / "os.img"
    image.write_bytes(START)
    whole = RawLayer.pwrite

    def cut(layer: RawLayer, offset: int, data: bytes | memoryview) -> None:
        if offset == 1000:
            raise raised
        whole(layer, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(RawLayer, "pwrite", cut)
        result = siterig("replay", *row.paths, "--onto", image)
    assert result.exit_code == outcome[0]
    assert result.stderr.splitlines() == [
        f"siterig: note: {image} is partial: it holds the log up to record 3, position 49, and perhaps part of what "
        "follows; the same replay completes it",
        outcome[1].format(image),
    ]
    assert siterig("replay", *row.paths, "--onto", image).exit_code == 0
    assert image.read_bytes() == bytes(row.data)


def test_a_log_goes_to_dm_log_writes_and_back(row: LogRow, tmp_path: Path) -> None:
    out, base, image = tmp_path / "dm", tmp_path / "base", tmp_path / "image"
    base.write_bytes(START)
    image.write_bytes(START)
    result = siterig("export", *row.paths, "--dm-log-writes", out)
    assert result.exit_code == 2
    assert result.stderr.endswith("give the disk as it was before the log with --base (LogUnaligned)\n")
    row.do((RecordType.RESIZE, 0, 512, 0))
    row.close()
    result = siterig("export", *row.paths, "--dm-log-writes", out, "--base", base)
    assert result.stdout == f"{out}: records: 5; entries: 4; disk: {DISK_BYTES + 512} bytes\n"
    assert result.stderr.splitlines() == [
        "siterig: note: 1 records were widened to whole sectors",
        "siterig: note: RESIZE has no counterpart (1 left out): replay onto an image of the disk's last size",
    ]
    result = siterig("import", out, "--onto-log", tmp_path / "back", "--size", "64KiB")
    made = tmp_path / "back.000001.hrl"
    assert result.stdout.startswith(f"{made}: entries: 4; records: 4; disk: {DISK_BYTES} bytes, new id ")
    assert siterig("replay", made, "--onto", image).exit_code == 0
    assert image.read_bytes() == bytes(row.data[:DISK_BYTES])


def test_import_refuses_other_files_and_folders_that_it_cannot_write_to(row: LogRow, tmp_path: Path) -> None:
    result = siterig("import", row.paths[0], "--onto-log", tmp_path / "back")
    assert result.exit_code == 1
    assert "a dm-log-writes log begins with 0x6a736677736872 (DmLogCorrupt)" in result.stderr
    result = siterig("import", tmp_path, "--onto-log", tmp_path / "back")
    assert (result.exit_code, result.stderr) == (
        2,
        f"siterig: error: {tmp_path}: is a folder; a log is a file or a block device (LogUnreadable)\n",
    )
    result = siterig("import", row.paths[0], "--onto-log", tmp_path / "none" / "back")
    assert (result.exit_code, result.stderr) == (
        2,
        f"siterig: error: {tmp_path}/none: is not a folder; write --onto-log DIR/NAME (FolderUnusable)\n",
    )


@needs_root
def test_in_another_users_folder_no_link_is_followed_by_export_and_import(row: LogRow, tmp_path: Path) -> None:
    theirs = folder_of_other_user(tmp_path / "theirs")
    base, victim = tmp_path / "base.img", tmp_path / "victim"
    base.write_bytes(bytes(DISK_BYTES))
    victim.write_bytes(b"precious")
    log = tmp_path / "good.dmlog"
    assert siterig("export", *row.paths, "--base", base, "--dm-log-writes", log).exit_code == 0
    for name in (".out.tmp", "out", "os.000001.tmp", "os.000001.hrl"):
        link_of_other_user(theirs / name, victim)
    link_of_other_user(theirs / "sub", tmp_path)
    for to in ("out", "sub/out"):
        refused = siterig("export", *row.paths, "--base", base, "--dm-log-writes", theirs / to)
        assert refused.exit_code == 2, refused.stderr
    for name in ("os", "sub/os"):
        refused = siterig("import", log, "--onto-log", theirs / name)
        assert refused.exit_code == 2, refused.stderr
    (theirs / "out").unlink()
    (theirs / "os.000001.hrl").unlink()
    assert siterig("export", *row.paths, "--base", base, "--dm-log-writes", theirs / "out").exit_code == 0
    assert siterig("import", log, "--onto-log", theirs / "os").exit_code == 0
    assert victim.read_bytes() == b"precious"
    assert sorted(path.name for path in theirs.iterdir()) == [".out.tmp", "os.000001.hrl", "os.000001.tmp", "out", "sub"]
    assert sorted(path.name for path in tmp_path.glob("os.*.hrl")) == sorted(path.name for path in row.paths)
