"""Errors of the operating system name their files, whichever call raised them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.files.os_errors import naming, reason
from siterig.blockfs.files.safe_files import held
from siterig.blockfs.layers.layer import RawLayer
from tests.support.io_faults import PUNCH, READ, RESIZE, SYNC, WRITE, failing


def test_the_text_names_both_files_of_a_rename(tmp_path: Path) -> None:
    with held(tmp_path) as folder, pytest.raises(FileNotFoundError) as failed:
        folder.rename("os.spare", "os.000002.hrl")
    assert reason(failed.value) == f"No such file or directory ({tmp_path}/os.spare to {tmp_path}/os.000002.hrl)"


def test_the_text_names_a_file_only_once() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/srv/os.img")
    assert reason(error, "/srv/os.img: cannot be written") == "No space left on device"
    assert reason(error, Path("/srv/os.img")) == "No space left on device"
    assert reason(error, "/srv/os.img.vhd: cannot be written") == "No space left on device (/srv/os.img)"
    assert reason(OSError("only text")) == "only text"
    assert reason(OSError()) == "OSError"


def test_an_error_of_a_descriptor_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor") as failed, naming(path):
            os.write(fd, b"x")
    finally:
        os.close(fd)
    assert reason(failed.value) == f"Bad file descriptor ({path})"


def test_a_name_relative_to_a_descriptor_becomes_a_whole_path() -> None:
    for given, shown in (("os.img", "/srv/os.img"), ("/proc/self/fd/7", "/srv/os.img"), ("/etc/x", "/etc/x")):
        with pytest.raises(OSError, match="denied") as failed, naming(Path("/srv/os.img")):
            raise PermissionError(errno.EACCES, "denied", given)
        assert failed.value.filename == shown


CALLS: dict[str, tuple[int, Callable[[RawLayer], object]]] = {
    "read": (READ, lambda layer: layer.pread(0, 512)),
    "write": (WRITE, lambda layer: layer.pwrite(0, b"x" * 512)),
    "zero": (PUNCH, lambda layer: layer.zero(0, 512)),
    "sync": (SYNC, lambda layer: layer.sync()),
    "resize": (RESIZE, lambda layer: layer.resize(2 << 20)),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_the_c_engine_names_the_file_that_failed(tmp_path: Path, call: str) -> None:
    path = tmp_path / "os.img"
    path.write_bytes(bytes(1 << 20))
    layer = RawLayer(path, writable=True)
    operation, act = CALLS[call]
    try:
        with failing(operation, ".img", errno.ENOSPC), pytest.raises(OSError, match="No space left") as failed:
            act(layer)
    finally:
        layer.close()
    assert reason(failed.value) == f"No space left on device ({path})"
