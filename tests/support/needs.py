"""Marks of tests that need a program or file system: machines without it skip them, and the summary names them."""

from __future__ import annotations

import pytest

from siterig.cli.doctor import TEST_PROGRAMS, ThisMachine


def needs_program(*names: str) -> pytest.MarkDecorator:
    """Skip unless all programs are there."""
    absent = [f"{name} (Debian package {TEST_PROGRAMS[name]})" for name in names if ThisMachine().program(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"this machine lacks {', '.join(absent)}, which ./rig test installs")


def needs_file_system(name: str) -> pytest.MarkDecorator:
    """Skip unless the kernel has it, or a module for it."""
    lacking = name not in ThisMachine().kernel_filesystems()
    return pytest.mark.skipif(lacking, reason=f"this machine's kernel has no {name}")
