"""Tests of the errors of the host's file systems, as a user reads them."""

from __future__ import annotations

import errno
import os

import pytest

from siterig.blockfs.files.host_errors import host_error


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (errno.ENOSPC, "DiskFull", "the host's disk is full"),
        (errno.EDQUOT, "DiskFull", "the host's disk is full"),
        (errno.ENOMEM, "LowMemory", "the host has too little free memory"),
        (errno.EIO, "HostIoError", "Input/output error"),
        (errno.EMFILE, "HostIoError", "Too many open files"),
    ],
)
def test_an_error_of_the_host_names_its_cause_and_can_be_repeated(number: int, code: str, text: str) -> None:
    error = host_error("disk web01/os", OSError(number, os.strerror(number), "/srv/os.000002.hrl"))
    assert (error.code, error.recoverable) == (code, True)
    assert error.message == f"disk web01/os: {text} (/srv/os.000002.hrl)"
