"""Finds the users who can change a file or folder: only root and this user, or others too.

Fault contract: the module has no state.  An answer describes the moment of the call.  It stays true only if the answer is
"nobody else" for a folder and for all folders above it; :func:`check_own` checks exactly that.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError


def user_text(uid: int) -> str:
    """Return a user for messages: ``user alice (uid 1000)``."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def is_trusted(uid: int) -> bool:
    """Return True for this user, and for root, who can change anything."""
    return uid in (0, os.geteuid())


@functools.cache
def _is_private_group(gid: int, uid: int) -> bool:
    """Return True if the group is the one that Debian creates for each user, without other members."""
    try:
        group, owner = grp.getgrgid(gid), pwd.getpwuid(uid).pw_name
    except KeyError:
        return False
    return group.gr_name == owner and set(group.gr_mem) <= {owner}


def _others_can_write(fd: int, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    with suppress(OSError):  # with an access control list, the group bits limit all its entries
        os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
        return True
    return not _is_private_group(status.st_gid, status.st_uid)


def changed_by_others(fd: int) -> str | None:
    """Return how users other than root and this user can change the open folder or file; None if they cannot.

    A symbolic link can be replaced but not changed: only its owner counts.
    """
    found = os.fstat(fd)
    if not is_trusted(found.st_uid):
        return f"belongs to {user_text(found.st_uid)}"
    if not stat.S_ISLNK(found.st_mode) and _others_can_write(fd, found):
        return f"can be written to by other users (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def check_own(path: Path, what: str) -> None:
    """Check that only root and this user can change ``path`` or replace it.

    Therefore all folders above it must belong to them too; others may write to such a folder if it is sticky, like ``/tmp``.
    A missing file is no error.

    Raises:
        RigError: ``FolderUnusable`` if others can change it.
        OSError: a folder cannot be read.
    """
    walked = Path("/")
    for part in ("", *path.absolute().parts[1:]):
        walked = walked / part
        try:
            others, mode = _look(walked)
        except FileNotFoundError:
            return
        sticky = mode & stat.S_ISVTX and walked != path.absolute() and is_trusted(walked.stat().st_uid)
        if others is not None and not sticky:
            raise _not_own(walked, what, others)
        if stat.S_ISLNK(mode):
            check_own(walked.parent / walked.readlink(), what)


def check_own_below(root: Path, what: str, *, but: Collection[Path] = ()) -> None:
    """Check everything in a folder like :func:`check_own`, except the folders ``but`` (mounts).

    Check ``root`` itself before.
    """
    pending = [root]
    while pending:
        try:
            inside = list(pending.pop().iterdir())
        except FileNotFoundError:  # it was removed meanwhile
            continue
        for path in inside:
            if path in but:
                continue
            try:
                others, mode = _look(path)
            except FileNotFoundError:
                continue
            if others is not None:
                raise _not_own(path, what, others)
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif stat.S_ISLNK(mode):
                check_own(path.parent / path.readlink(), what)


def _look(path: Path) -> tuple[str | None, int]:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return changed_by_others(fd), os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _not_own(path: Path, what: str, others: str) -> RigError:
    remedy = "name a folder that you make yourself"
    if "mode" in others:
        remedy += f"; or, if no other user has put anything there, chmod go-w {path}"
    return RigError(
        Code.FolderUnusable, f"{path}: {others}; {what} must be in the hands of {user_text(os.geteuid())}: {remedy}"
    )
