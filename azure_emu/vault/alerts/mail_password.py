"""The password of the mail server's user, in a file of the rig's keys.

Fault contract: the file is replaced atomically.  A kill between it and the settings leaves the new password with the former
settings; the command that was killed can be repeated.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from siterig.azure_emu.vault.alerts.alert_settings import invalid
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.safe_files import FILE_MODE
from siterig.blockfs.files.small_file import FileTooLongError, bounded

BYTES_MAX = 1024


class MailPassword:
    """The password of one vault; ``path`` is the file of the rig, which may be missing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def exists(self) -> bool:
        """True if there is a password."""
        return self._path.is_file()

    def store(self, text: str) -> None:
        """Keep a password durably."""
        try:
            safe_files.make_folder(self._path.parent, parents=True)
            write_atomically(self._path, text.encode() + b"\n")
        except OSError as error:
            raise RigError(Code.KeysUnreadable, f"{self._path} cannot be written: {reason(error, self._path)}") from error

    def load(self) -> str:
        """Return the password.

        Raises:
            RigError: ``MailUnsent``.
        """
        try:
            return read_password(self._path)
        except RigError as error:
            raise RigError(Code.MailUnsent, f"the password of the mail server: {error.message}", recoverable=True) from None

    def forget(self) -> None:
        """Delete the password, if there is one."""
        self._path.unlink(missing_ok=True)


def read_password(path: Path) -> str:
    """Return the password in a file, which only its owner may read: one line of text.

    Raises:
        RigError: ``InvalidAlertSettings``; the text has nothing of the contents.
    """
    key = "password_file"
    try:
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            if mode & ~FILE_MODE:
                raise invalid(key, f"{str(path)!r} of mode {mode:04o}", f"mode {FILE_MODE:04o}: chmod 600 FILE")
            if status.st_uid != os.geteuid():
                raise invalid(key, f"{str(path)!r} of another user", "a file of the user of the rig")
            text = bounded(file, BYTES_MAX).decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise invalid(key, f"{str(path)!r}, which cannot be read: {reason(error, path)}", "a file") from error
    except (FileTooLongError, UnicodeDecodeError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise invalid(key, f"{str(path)!r}, which {what}", f"one line of UTF-8, at most {BYTES_MAX} bytes") from None
    if not text or not text.isprintable():
        raise invalid(key, f"{str(path)!r}, which is empty or has control characters", "one line of text")
    return text
