"""An exported image replaces a file only if the user allows it, and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.images import image_export
from siterig.images.image_export import ExportFormat
from tests.support.other_user import file_of_other_user, folder_of_other_user, link_of_other_user, needs_root

BYTES = b"disk" * 1024


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    """Create a device node whose number has no driver."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(60, 200))  # "local/experimental use"
    except PermissionError:
        pytest.skip("only root makes device nodes")


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def folder(path: Path) -> None:
    path.mkdir()


KINDS = pytest.mark.parametrize(
    ("make", "kind"),
    [(fifo, "FIFO"), (device, "device"), (sock, "socket"), (folder, "folder")],
    ids=["FIFO", "device", "socket", "folder"],
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "os.img"
    path.write_bytes(BYTES)
    return path


async def export(disk: Path, to: Path, *, force: bool, format_: ExportFormat = "raw") -> None:
    await image_export.export(disk, to, format_, force=force, advance=lambda _done: None)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("linked", [False, True])
@KINDS
async def test_only_a_regular_file_is_replaced(
    tmp_path: Path, disk: Path, *, make: Callable[[Path], None], kind: str, linked: bool, force: bool
) -> None:
    there = tmp_path / "there"
    make(there)
    to = there
    if linked:
        to = tmp_path / "link"
        to.symlink_to("there")
    before = there.lstat()
    with pytest.raises(RigError) as checked:
        image_export.check(to, "raw", force=force)
    assert (checked.value.code, checked.value.message) == ("BadRequest", f"{to}: is a {kind}; name a file")
    with pytest.raises(RigError) as failed:  # as if it had come meanwhile
        await export(disk, to, force=force)
    assert (failed.value.code, failed.value.message) == ("BadRequest", f"{there}: is a {kind}; name a file")
    assert (there.lstat().st_ino, there.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"os.img", "there", to.name})


async def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "images").mkdir()
    target, link, dangling = tmp_path / "images" / "x.img", tmp_path / "link", tmp_path / "dangling"
    target.write_bytes(b"precious")
    link.symlink_to("images/x.img")
    dangling.symlink_to("images/new.img")
    with pytest.raises(RigError, match="link is there already"):
        image_export.check(link, "raw", force=False)
    with pytest.raises(RigError, match=r"x\.img is there already"):
        await export(disk, link, force=False)
    image_export.check(link, "raw", force=True)
    await export(disk, link, force=True)
    image_export.check(dangling, "raw", force=False)
    await export(disk, dangling, force=False)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_bytes() == (tmp_path / "images" / "new.img").read_bytes() == BYTES


@needs_root
@pytest.mark.parametrize("force", [False, True])
async def test_in_another_users_folder_no_link_is_followed_and_no_file_is_replaced(
    tmp_path: Path, disk: Path, force: bool
) -> None:
    theirs = folder_of_other_user(tmp_path / "theirs")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link_of_other_user(theirs / "link", victim)
    link_of_other_user(theirs / "dangling", tmp_path / "new")
    link_of_other_user(theirs / "folder", tmp_path)
    file_of_other_user(theirs / "own", b"theirs")
    for name in ("link", "dangling", "folder/x.img", "own"):
        for refuse in (lambda to: image_export.check(to, "raw", force=force), lambda to: export(disk, to, force=force)):
            with pytest.raises(RigError) as failed:
                if (waits := refuse(theirs / name)) is not None:
                    await waits
            assert failed.value.code in (("ForeignFile",) if force or name != "own" else ("FileExists", "ForeignFile"))
    assert victim.read_bytes() == b"precious"
    assert (theirs / "own").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["os.img", "theirs", "victim"]
    await export(disk, theirs / "new", force=force)
    assert (theirs / "new").read_bytes() == BYTES
    assert sorted(path.name for path in theirs.iterdir()) == ["dangling", "folder", "link", "new", "own"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
async def test_the_mode_of_an_image_does_not_depend_on_the_umask(tmp_path: Path, disk: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        await export(disk, tmp_path / "x.img", force=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.img").stat().st_mode) == 0o600


@pytest.mark.parametrize("to", ["nowhere/x.img", "dangling", "os.img/x.img"])
def test_an_image_in_no_folder_is_refused(tmp_path: Path, disk: Path, to: str) -> None:
    (tmp_path / "dangling").symlink_to("nowhere/x.img")
    with pytest.raises(RigError, match="its folder does not exist; name a file in an existing folder"):
        image_export.check(tmp_path / to, "raw", force=False)


def test_a_ring_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(RigError, match="ring: Too many levels of symbolic links"):
        image_export.check(tmp_path / "ring", "raw", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_an_image_does_not_go_to_standard_output(force: bool) -> None:
    with pytest.raises(RigError, match=r"^-: an image is not written to standard output; name a file$") as failed:
        image_export.check(Path("-"), "raw", force=force)
    assert failed.value.code == "BadRequest"


async def test_without_hard_links_a_file_that_came_meanwhile_stays(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_unnamed(path: Path, flags: int, *more: int, **folder: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, *more, **folder)

    def no_links(*_paths: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    opened = os.open
    monkeypatch.setattr(os, "open", no_unnamed)
    monkeypatch.setattr(os, "link", no_links)
    to = tmp_path / "out"
    to.write_bytes(b"came meanwhile")
    with pytest.raises(RigError) as failed:
        await export(disk, to, force=False)
    assert failed.value.code == "FileExists"
    assert to.read_bytes() == b"came meanwhile"
    to.unlink()
    await export(disk, to, force=False)
    assert to.read_bytes() == BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["os.img", "out"]
