"""The settings of tests on siterig: each is a factory argument, an option of pytest and a key of its ini file.

The factory argument counts before the option, the option before the ini key, and the ini key before the default.  The module
loads almost nothing, because pytest reads the table at its start.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from siterig.blockfs.core.errors import Code, RigError

Keep = Literal["never", "failed", "always"]
FileSystemKind = Literal["ext4", "xfs"]
Setup = str | Callable[[Path], object] | None
"""A shell command that runs in the mounted file system, or a function that gets its folder."""
SEED_MAX = 2**32 - 1
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _refused(source: str, value: object, allowed: str) -> RigError:
    return RigError(Code.BadRequest, f"{source}: {value!r} is not allowed; allowed: {allowed}")


def _size(source: str, value: object) -> int:
    from siterig.core.parsing import parse_size  # noqa: PLC0415 (pytest reads the table without it)

    try:
        return parse_size(str(value))
    except RigError as error:
        raise RigError(error.code, f"{source}: {error.message}") from None


def _choice(*allowed: str) -> Callable[[str, object], str]:
    def parse(source: str, value: object) -> str:
        if value not in allowed:
            raise _refused(source, value, ", ".join(allowed))
        return str(value)

    return parse


def _flag(source: str, value: object) -> bool:
    text = str(value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise _refused(source, value, "true, false")
    return text in _TRUE


def _seconds(source: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _refused(source, value, "a positive number of seconds")
    return seconds


def _seed(source: str, value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdecimal() or int(text) > SEED_MAX:
        raise _refused(source, value, f"a whole number from 0 to {SEED_MAX}")
    return int(text)


def _setup(source: str, value: object) -> Setup:
    if callable(value):
        return value
    if not isinstance(value, str):
        raise _refused(source, value, "a shell command, or in a factory a function that takes the mounted folder")
    return value or None


_KEEP = _choice("never", "failed", "always")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: the factory argument; the option is ``--siterig-NAME``, the ini key ``siterig_NAME``.
        default: the default, as text.
        text: one line for the help of pytest and for the documents.
        values: the allowed values, for people.
        parse: makes the value from a text; raises ``RigError`` with the source and the allowed values.
        flag: the option has no value, and switches the setting on.
    """

    name: str
    default: str
    text: str
    values: str
    parse: Callable[[str, object], Any]
    flag: bool = False

    @property
    def option(self) -> str:
        """The option of pytest."""
        return f"--siterig-{self.name}"

    @property
    def ini(self) -> str:
        """The key of pytest's ini file."""
        return f"siterig_{self.name}"

    def read(self, source: str, value: object) -> Any:
        """Return the value of the setting; ``source`` names the argument, option or key in an error."""
        return self.parse(source, value)


SETTINGS: tuple[Setting, ...] = (
    Setting("size", "64MiB", "size of a new disk", "a size, at least 300MiB for xfs", _size),
    Setting("fs", "ext4", "file system of siterig_fs and of the disks of siterig_vm", "ext4, xfs", _choice("ext4", "xfs")),
    Setting("setup", "", "command that fills the file system of the template, in its folder", "a shell command", _setup),
    Setting("log", "true", "record every write, so that the disk has crash states", "true, false", _flag),
    Setting("keep", "failed", "keep disks, logs and timeline of a test", "never, failed, always", _KEEP),
    Setting("require", "false", "fail instead of skip when the machine lacks something", "true, false", _flag, flag=True),
    Setting("share", "false", "one rig and one Azurite for all workers of pytest-xdist", "true, false", _flag, flag=True),
    Setting("seed", "random", "seed of all random choices", f"random, or a whole number from 0 to {SEED_MAX}", _seed),
    Setting("interval", "1", "replication interval of protected VMs, in seconds", "a positive number", _seconds),
    Setting("timeout", "120", "longest wait for a server or a job, in seconds", "a positive number", _seconds),
)
"""All settings, in the order of the documents."""


@dataclass(frozen=True, slots=True)
class TestingSettings:
    """The values of all settings.

    Attributes:
        size: size of a new disk in bytes.
        fs: file system.
        setup: fills the file system of the template; None: it stays empty.
        log: record every write.
        keep: which tests keep their disks, logs and timeline.
        require: fail instead of skip.
        share: share rig and Azurite between workers.
        seed: seed of all random choices.
        interval: replication interval in seconds.
        timeout: longest wait for a server or a job in seconds.
    """

    __test__ = False  # its name is no test's

    size: int = 64 << 20
    fs: FileSystemKind = "ext4"
    setup: Setup = None
    log: bool = True
    keep: Keep = "failed"
    require: bool = False
    share: bool = False
    seed: int = 0
    interval: float = 1.0
    timeout: float = 120.0

    @classmethod
    def of(cls, find: Callable[[Setting], tuple[str, object] | None]) -> TestingSettings:
        """Return the settings from their sources.

        Args:
            find: returns the source of a setting and its value there; None if the default counts.

        Raises:
            RigError: ``BadRequest`` or ``InvalidDiskSize`` with the source, the value and the allowed values.
        """
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            found = find(setting)
            source, value = found if found is not None else (setting.ini, setting.default)
            values[setting.name] = (
                secrets.randbelow(SEED_MAX + 1)
                if value == "random" and setting.name == "seed"
                else setting.read(source, value)
            )
        return cls(**values)

    def but(self, **arguments: object) -> TestingSettings:
        """Return the settings with the arguments of a factory in place; None keeps the value.

        Raises:
            RigError: as :meth:`of`.
        """
        given: Mapping[str, object] = {name: value for name, value in arguments.items() if value is not None}
        return replace(
            self, **{each.name: each.read(f"{each.name}=", given[each.name]) for each in SETTINGS if each.name in given}
        )
