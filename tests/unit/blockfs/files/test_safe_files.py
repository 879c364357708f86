"""Files in folders that another user may have prepared: no link is followed, and nothing of that user is overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.changelog.dm_log_writes import DmLogWriter
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically, write_synced
from siterig.blockfs.files.ownership import check_own, check_own_below
from siterig.blockfs.layers.layer import RawLayer
from tests.support.other_user import UID, file_of_other_user, folder_of_other_user, link_of_other_user, needs_root


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a folder that belongs to another user."""
    return folder_of_other_user(tmp_path / "theirs")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a file of this user, which the other user tries to have overwritten."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious" * 100)
    return path


def append(path: Path) -> None:
    os.close(safe_files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


WAYS: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: write_atomically(path, b"new"),
    "written": lambda path: write_synced(path, b"new"),
    "appended to": append,
    "mapped": PositionCounter,
    "created": safe_files.create_file,
    "segment": SegmentReader,
    "raw disk": lambda path: RawLayer(path, writable=True),
}


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_a_link_of_another_user_is_not_followed(theirs: Path, victim: Path, way: str) -> None:
    link_of_other_user(theirs / "name", victim)
    with pytest.raises((RigError, FileExistsError)) as failed:
        WAYS[way](theirs / "name")
    assert str(theirs / "name") in str(failed.value)
    assert victim.read_bytes() == b"precious" * 100
    assert (theirs / "name").is_symlink()


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_is_a_link_of_another_user_is_not_entered(theirs: Path, tmp_path: Path, way: str) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "name").write_bytes(b"")
    link_of_other_user(theirs / "way", ours)
    with pytest.raises(RigError, match=f"{theirs}/way: is a symbolic link of user nobody") as failed:
        WAYS[way](theirs / "way" / "name")
    assert failed.value.code == "ForeignFile"
    assert [path.name for path in ours.iterdir()] == ["name"]


@needs_root
@pytest.mark.parametrize("way", ["replaced", "written", "appended to", "mapped", "created"])
def test_a_file_of_another_user_is_not_overwritten(theirs: Path, way: str) -> None:
    file_of_other_user(theirs / "name", b"theirs")
    with pytest.raises((RigError, FileExistsError)):
        WAYS[way](theirs / "name")
    assert (theirs / "name").read_bytes() == b"theirs"
    assert [path.name for path in theirs.iterdir()] == ["name"]


@needs_root
@pytest.mark.parametrize("way", ["written", "appended to", "mapped"])
def test_another_users_hard_link_to_our_file_is_not_written_through(theirs: Path, victim: Path, way: str) -> None:
    os.link(victim, theirs / "name")  # fs.protected_hardlinks=0 allows this to every user
    with pytest.raises(RigError, match=r"has 2 names \(hard links\)"):
        WAYS[way](theirs / "name")
    assert victim.read_bytes() == b"precious" * 100


@needs_root
def test_a_hard_link_to_another_users_file_is_not_opened_as_an_image(theirs: Path, victim: Path) -> None:
    os.link(victim, theirs / "disk.img")
    with pytest.raises(RigError, match=r"has 2 names \(hard links\)"):
        safe_files.open_named(theirs / "disk.img", os.O_RDWR)
    os.link(file_of_other_user(theirs / "own.img", b""), theirs / "second.img")
    os.close(safe_files.open_named(theirs / "second.img", os.O_RDWR))


@needs_root
def test_a_file_of_this_user_in_another_users_folder_can_be_used(theirs: Path) -> None:
    for content in (b"first", b"second"):
        write_atomically(theirs / "name", content)
        assert (theirs / "name").read_bytes() == content
    assert [path.name for path in theirs.iterdir()] == ["name"]


def test_a_folder_that_all_users_may_write_to_is_not_trusted(tmp_path: Path, victim: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    os.link(victim, shared / "name")
    with pytest.raises(RigError, match="has 2 names"):
        write_synced(shared / "name", b"new")
    assert victim.read_bytes() == b"precious" * 100


def test_our_links_to_folders_are_followed_but_not_written_through(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    write_atomically(tmp_path / "way" / "name", b"new")
    assert (tmp_path / "real" / "name").read_bytes() == b"new"
    assert safe_files.resolve(tmp_path / "way" / ".." / "way" / "missing" / "more") == tmp_path / "real" / "missing" / "more"
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(RigError, match="is a symbolic link"):
        write_synced(tmp_path / "link", b"new")
    assert safe_files.resolve(tmp_path / "link") == victim


def test_links_in_a_circle_are_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels") as failed:
        safe_files.resolve(tmp_path / "one")
    assert failed.value.filename == str(tmp_path / "one")


def test_temporary_names_differ_each_time() -> None:
    assert len({safe_files.temporary_name("os.disk") for _ in range(100)}) == 100


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        safe_files.make_folder(tmp_path / "a" / "b", parents=True)
        write_atomically(tmp_path / "a" / "b" / "replaced", b"")
        write_atomically(tmp_path / "a" / "b" / "public", b"", mode=0o644)
        write_synced(tmp_path / "a" / "b" / "written", b"")
        os.close(safe_files.create_file(tmp_path / "a" / "b" / "created"))
        PositionCounter(tmp_path / "a" / "b" / "position").close()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "a").rglob("*")}
    assert modes == {"b": 0o700, "public": 0o644} | dict.fromkeys(("replaced", "written", "created", "position"), 0o600)


def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "name")
    with pytest.raises(RigError, match="is no regular file"):
        safe_files.open_file(tmp_path / "name", os.O_RDONLY)


# --- a folder that must be private to this user ---------------------------------------------------------------------------


def test_a_folder_that_others_can_write_to_is_not_private(tmp_path: Path) -> None:
    root = tmp_path / "rig"
    (root / "keys").mkdir(parents=True, mode=0o700)
    check_own(root, "a rig")
    check_own_below(root, "a rig")
    for mode in (0o777, 0o1777, 0o702, 0o722):
        root.chmod(mode)
        with pytest.raises(RigError, match=rf"{root}: can be written to by other users \(mode {mode:04o}\)") as failed:
            check_own(root, "a rig")
        assert failed.value.code == "FolderUnusable"
    root.chmod(0o755)
    check_own(root, "a rig")
    (root / "keys").chmod(0o777)
    with pytest.raises(RigError, match=rf"{root}/keys: can be written to by other users \(mode 0777\)"):
        check_own_below(root, "a rig")
    check_own_below(root, "a rig", but=[root / "keys"])


def test_a_parent_that_others_can_write_to_must_be_sticky(tmp_path: Path) -> None:
    above, root = tmp_path / "above", tmp_path / "above" / "rig"
    root.mkdir(parents=True)
    above.chmod(0o777)
    with pytest.raises(RigError, match=f"{above}: can be written to"):
        check_own(root, "a rig")
    above.chmod(0o1777)
    check_own(root, "a rig")
    check_own(above / "missing" / "rig", "a rig")


@needs_root
def test_a_folder_of_another_user_is_not_private(tmp_path: Path) -> None:
    root = tmp_path / "rig"
    (root / "keys").mkdir(parents=True)
    (root / "keys" / "account.key").write_text("")
    for path in (root / "keys" / "account.key", root / "keys", root):
        os.chown(path, UID, UID)
        check, at = (check_own, root) if path == root else (check_own_below, root)
        with pytest.raises(RigError, match=rf"{path}: belongs to user nobody \(uid 65534\); a rig must be in the hands of"):
            check(at, "a rig")
        os.chown(path, 0, 0)
    link_of_other_user(root / "run", tmp_path)
    with pytest.raises(RigError, match=f"{root}/run: belongs to user nobody"):
        check_own_below(root, "a rig")


@needs_root
def test_a_link_of_this_user_to_another_users_folder_is_refused(tmp_path: Path, theirs: Path) -> None:
    root = tmp_path / "rig"
    root.mkdir()
    (root / "azure").symlink_to(theirs)
    with pytest.raises(RigError, match=f"{theirs}: belongs to user nobody"):
        check_own_below(root, "a rig")


# --- files that commands write in another user's folder --------------------------------------------------------------


@needs_root
def test_an_exported_log_is_not_written_through_a_link(theirs: Path, victim: Path) -> None:
    link_of_other_user(theirs / ".out.tmp", victim)
    DmLogWriter(theirs / "out").finish()
    assert victim.read_bytes() == b"precious" * 100
    link_of_other_user(theirs / "other", victim)
    with pytest.raises(RigError, match="exists already"):
        DmLogWriter(theirs / "other")
