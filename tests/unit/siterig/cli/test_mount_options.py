"""``siterig mount``: mistakes are one line each, a documented exit status, and leave everything as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images.vhd import fixed_footer
from siterig.cli.app import program
from siterig.images import mountpoint
from siterig.images.mountpoint import Mountpoint, prepare

MIB = 1 << 20


def missing(folder: Path) -> list[object]:
    return [folder / "none.img", "--mnt", folder / "m"]


def a_folder(folder: Path) -> list[object]:
    return [folder, "--mnt", folder / "m"]


def odd_size(folder: Path) -> list[object]:
    (folder / "odd.img").write_bytes(bytes(1000))
    return [folder / "odd.img", "--mnt", folder / "m"]


def vhd_without_footer(folder: Path) -> list[object]:
    (folder / "raw.vhd").write_bytes(bytes(MIB))
    return [folder / "raw.vhd", "--mnt", folder / "m"]


def damaged_vhd(folder: Path) -> list[object]:
    (folder / "bad.vhd").write_bytes(bytes(MIB) + fixed_footer(2 * MIB, "6a83da7e-b542-496d-a113-08b9b71d9e21"))
    return [folder / "bad.vhd", "--mnt", folder / "m"]


def qcow2(folder: Path) -> list[object]:
    (folder / "a.img").write_bytes(b"QFI\xfb".ljust(MIB, b"\0"))
    return [folder / "a.img", "--mnt", folder / "m"]


def good(folder: Path) -> Path:
    (folder / "good.img").write_bytes(bytes(MIB))
    return folder / "good.img"


def not_empty(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder]


def no_parent(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder / "a" / "b"]


def a_file_for_a_folder(folder: Path) -> list[object]:
    return [good(folder), "--mnt", good(folder)]


def below_a_file(folder: Path) -> list[object]:
    return [good(folder), "--mnt", good(folder) / "m"]


def log_and_read_only(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder / "m", "--log", "--read-only"]


def name_with_a_folder(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder / "m", "--name", "a/b"]


def name_of_two_lines(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder / "m", "--name", "a\nb"]


def foreign_log(folder: Path) -> list[object]:
    (folder / "good.000001.hrl").write_bytes(b"precious")
    return [good(folder), "--mnt", folder / "m", "--log"]


def name_too_long(folder: Path) -> list[object]:
    return [good(folder), "--mnt", folder / "m", "--log", "--name", "n" * 250]


MISTAKES: list[tuple[Callable[[Path], list[object]], str, str]] = [
    (missing, "none.img: does not exist", "ImageUnusable"),
    (a_folder, ": is a folder; an image is a file", "ImageUnusable"),
    (odd_size, "odd.img: has 1000 bytes", "InvalidDiskSize"),
    (vhd_without_footer, "raw.vhd: is named as a VHD, but", "VhdCorrupt"),
    (damaged_vhd, "bad.vhd: the VHD footer names a disk of 2097152 bytes; 1048576 bytes are before it", "VhdCorrupt"),
    (qcow2, "a.img: is a qcow2 image", "ImageUnusable"),
    (not_empty, ": is not empty ('good.img' is in it)", "FolderUnusable"),
    (no_parent, "a/b: cannot be created: its parent", "FolderUnusable"),
    (a_file_for_a_folder, "good.img: is not a folder", "FolderUnusable"),
    (below_a_file, "good.img/m: ", "FolderUnusable"),
    (log_and_read_only, "--log and --read-only", "BadRequest"),
    (name_with_a_folder, "disk is named 'a/b'", "InvalidName"),
    (name_of_two_lines, r"disk is named 'a\nb': it must be a file's name, without a folder, of printable", "InvalidName"),
    (foreign_log, "good.000001.hrl: is there, but no good.disk", "LogExists"),
    (name_too_long, "cannot hold the change log of good.img: File name too long", "FolderUnusable"),
]


@pytest.mark.parametrize(("arguments", "says", "code"), MISTAKES, ids=[arguments.__name__ for arguments, *_ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Callable[[Path], list[object]], says: str, code: str
) -> None:
    monkeypatch.setattr(mountpoint, "check_fuse", lambda: None)
    command = arguments(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused = CliRunner().invoke(program(["mount"]), ["mount", *map(str, command)])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stderr.startswith("siterig: error: ")
    assert says in refused.stderr
    assert refused.stderr.endswith(f"({code})\n")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- the folder


def test_an_empty_folder_is_taken_as_it_is_and_kept(tmp_path: Path) -> None:
    found = prepare(tmp_path)
    assert found == Mountpoint(tmp_path, made=False)
    found.remove_if_created()
    assert tmp_path.is_dir()


def test_a_folder_that_was_made_goes_again_unless_somebody_uses_it(tmp_path: Path) -> None:
    found = prepare(tmp_path / "m")
    assert found == Mountpoint(tmp_path / "m", made=True)
    (tmp_path / "m" / "theirs").touch()
    found.remove_if_created()
    assert (tmp_path / "m").is_dir()
    (tmp_path / "m" / "theirs").unlink()
    found.remove_if_created()
    assert not (tmp_path / "m").exists()


def test_a_path_is_made_absolute_and_free_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert prepare(Path("link")).path == tmp_path / "real"


def test_a_folder_where_something_is_mounted_is_refused() -> None:
    with pytest.raises(RigError, match="is mounted here already") as failed:
        prepare(Path("/proc"))
    assert failed.value.code == "MountFailed"


def test_the_error_on_a_machine_without_fuse_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_arguments: object) -> int:
        raise FileNotFoundError

    def forbidden(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    for opened, code in ((absent, "FuseMissing"), (forbidden, "NotPermitted")):
        with monkeypatch.context() as patch, pytest.raises(RigError) as failed:
            patch.setattr(os, "open", opened)
            mountpoint.check_fuse()
        assert failed.value.code == code
