"""New text files that commands write for a person: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError


def write_new_file(path: Path, text: str) -> None:
    """Write a file that does not exist yet; after an error there is none.

    Raises:
        RigError: ``FileExists``, or ``IoFailed`` with the reason.
    """
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise RigError(Code.FileExists, f"{path}: the file exists; name a new one") from None
    except OSError as error:
        raise RigError(Code.IoFailed, f"{path}: the file cannot be written: {error.strerror}") from None
    try:
        with file:
            file.write(text)
    except BaseException as error:
        path.unlink(missing_ok=True)  # a part of the text would be taken for all of it
        if not isinstance(error, OSError):
            raise
        raise RigError(Code.IoFailed, f"{path}: the file cannot be written: {error.strerror}") from None
