"""Written files become durable in the right order: first the bytes, then the name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siterig.blockfs.files.durable_io import rename_new, sync_folder, write_atomically, write_synced
from siterig.blockfs.files.safe_files import temporary_name
from tests.support.process_kills import without_token


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record fsyncs (by the name that the descriptor has at that moment) and renames, by time."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(fd: int) -> None:
        done.append(f"fsync {without_token(Path(f'/proc/self/fd/{fd}').readlink().name)}")
        fsync(fd)

    def recording_rename(old: str, new: str, **folders: int) -> None:
        done.append(f"rename {without_token(old)} {new}")
        rename(old, new, **folders)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    return done


def test_a_replacement_is_durable_before_it_gets_its_durable_name(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "state").write_bytes(b"old")
    write_atomically(tmp_path / "state", b"new")
    assert steps == ["fsync .state.tmp", "rename .state.tmp state", f"fsync {tmp_path.name}"]
    assert (tmp_path / "state").read_bytes() == b"new"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_a_written_file_is_durable(tmp_path: Path, steps: list[str]) -> None:
    write_synced(tmp_path / "part", b"bytes" * 1000)
    assert steps == ["fsync part"]
    assert (tmp_path / "part").read_bytes() == b"bytes" * 1000


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_bytes(b"old")

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "state", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"state": b"old"}


def test_a_replacement_removes_only_leftovers_of_killed_processes(tmp_path: Path) -> None:
    others = [".state.tmp", f".other.{'0' * 16}.tmp", f".state.{'0' * 15}.tmp", f"state.{'0' * 16}.tmp"]
    for name in [*others, temporary_name("state"), temporary_name("state")]:
        (tmp_path / name).write_bytes(b"")
    write_atomically(tmp_path / "state", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"state", *others}


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")


def test_a_file_under_a_new_name_never_replaces_another_file(tmp_path: Path) -> None:
    (tmp_path / "hidden").write_bytes(b"new")
    (tmp_path / "taken").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="taken"):
        rename_new(tmp_path / "hidden", tmp_path / "taken")
    rename_new(tmp_path / "hidden", tmp_path / "free")
    assert ((tmp_path / "taken").read_bytes(), (tmp_path / "free").read_bytes()) == (b"old", b"new")
    assert not (tmp_path / "hidden").exists()
