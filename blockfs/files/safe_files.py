"""Opens and creates files safely in folders that another user may have prepared; no other module does it.

Fault contract: a path is walked folder by folder.  A symbolic link on the way is followed only if root or this user created
it.  The last name is used below a descriptor of its folder, never by the path, and never through a link.  A new file never
replaces a file of that name; temporary names cannot be guessed; modes do not depend on the umask.

There are two kinds of folders.  In a folder that only root and this user can change, every name is this user's.  In any
other folder (another user's, or one that many can write to) a file is used only if this user created it and it has no second
name elsewhere; otherwise it is refused (``ForeignFile``).  A rig's state folder must be of the first kind, and so must all
folders above it: :func:`siterig.blockfs.files.ownership.check_own`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.files.ownership import changed_by_others, is_trusted, user_text

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_LINKS_MAX = 40
_DESCRIPTORS = re.compile(r"/proc/\d+(/task/\d+)?/fd")
_NAMELESS = re.compile(r"\w+:.*")
"""The kernel's text for a descriptor without a name: ``pipe:[4711]``, as in a shell's ``<(command)``."""
_TOKEN_BYTES = 8
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _foreign(path: Path, what: str, remedy: str) -> RigError:
    return RigError(Code.ForeignFile, f"{path}: {what}; this command runs as {user_text(os.geteuid())}: {remedy}")


# --- walking a path ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Walk:
    """A walk from the root folder; ``fd`` is the place that it has reached."""

    fd: int
    names: list[str] = field(default_factory=list)
    """The names on the way to the place, without links."""
    links: int = 0

    @property
    def path(self) -> Path:
        """The place without links."""
        return Path("/", *self.names)

    def enter(self, part: str, todo: list[str]) -> None:
        """Walk one name further; the parts of a link are inserted before the remaining parts."""
        following = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            link_target = _link_behind(following)
        except BaseException:
            os.close(following)
            raise
        if link_target is None:
            os.close(self.fd)
            self.fd = following
            if part != "..":
                self.names.append(part)
            elif self.names:
                self.names.pop()
            return
        try:
            self.links += 1
            if self.links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if not is_trusted(link_target.st_uid):
                made_by = user_text(link_target.st_uid)
                raise _foreign(
                    self.path / part, f"is a symbolic link of {made_by}, which is not followed", "name the file it points to"
                )
            target = os.readlink("", dir_fd=following)
        finally:
            os.close(following)
        if _NAMELESS.fullmatch(target) and _DESCRIPTORS.fullmatch(str(self.path)):
            reached = os.open(part, os.O_PATH | os.O_CLOEXEC, dir_fd=self.fd)
            os.close(self.fd)
            self.fd = reached
            self.names.append(part)
            return
        if target.startswith("/"):
            os.close(self.fd)
            self.fd = _root()
            self.names.clear()
        todo.extend(reversed([piece for piece in target.split("/") if piece not in ("", ".")]))


def _link_behind(fd: int) -> os.stat_result | None:
    """Return the attributes of the symbolic link behind a descriptor.

    The result is None if it is something else, or a mount whose server is dead.
    """
    try:
        found = os.fstat(fd)
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return None
        raise
    return found if stat.S_ISLNK(found.st_mode) else None


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def _walked(path: Path) -> Iterator[_Walk]:
    """Yield the walk that has reached the end of ``path``; search permission on the way is enough."""
    walk = _Walk(_root())
    try:
        todo = list(reversed(path.absolute().parts[1:]))
        with naming(path):
            while todo:
                walk.enter(todo.pop(), todo)
        yield walk
    finally:
        os.close(walk.fd)


def resolve(path: Path) -> Path:
    """Return the path without links, like ``os.path.realpath``; the last part may be missing.

    Raises:
        RigError: ``ForeignFile`` if a link on the way belongs to another user.
        OSError: the path cannot be walked.
    """
    missing: list[str] = []
    todo = path.absolute()
    while True:
        try:
            with _walked(todo) as walk:
                return walk.path.joinpath(*reversed(missing))
        except FileNotFoundError:
            if todo.is_symlink():  # its target is missing
                todo = todo.parent / todo.readlink()
            else:
                missing.append(todo.name)
                todo = todo.parent


# --- a folder -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is held by its descriptor: names are looked up in it even if its path changes."""

    path: Path
    fd: int

    @property
    def others(self) -> str | None:
        """The way in which users other than root and this user can change its files; None if they cannot."""
        return changed_by_others(self.fd)

    def sync(self) -> None:
        """Make its entries durable."""
        with naming(self.path):
            os.fsync(self.fd)

    def open(self, name: str, flags: int, *, mode: int = FILE_MODE) -> int:
        """Return a descriptor of a regular file in the folder, opened without following a link.

        Args:
            name: name in the folder.
            flags: flags of open(2); with ``O_CREAT`` a missing file is created.
            mode: mode of a created file, for any umask.
        Raises:
            RigError: ``ForeignFile`` if the file may belong to another user.
            OSError: it cannot be opened.
        """
        path = self.path / name
        host_calls.opening(path, flags)
        fd = self._open(name, flags, mode)
        host_calls.opened(path, fd)
        return fd

    def _open(self, name: str, flags: int, mode: int) -> int:
        if flags & os.O_CREAT:
            with naming(self.path / name):
                try:
                    made = os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.fd)
                    return _with_mode(made, mode)
                except FileExistsError:
                    if flags & os.O_EXCL:
                        raise
        return self._open_present(name, flags & ~os.O_CREAT)

    def _open_present(self, name: str, flags: int) -> int:
        path = self.path / name
        with naming(path):
            if stat.S_ISLNK(self._entry(name).st_mode):  # open would fail with a bare ELOOP
                self._refuse_link(name)
            # Do not wait for a named pipe, and truncate nothing before the owner is checked.
            opened = (flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC) & ~os.O_TRUNC
            fd = os.open(name, opened, dir_fd=self.fd)
            try:
                found = os.fstat(fd)
                self._check_regular(name, found)
                self._check_ours(name, found)
                os.set_blocking(fd, not flags & os.O_NONBLOCK)
                if flags & os.O_TRUNC:
                    os.ftruncate(fd, 0)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _entry(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def _refuse_link(self, name: str) -> None:
        made_by = user_text(self._entry(name).st_uid)
        raise _foreign(self.path / name, f"is a symbolic link of {made_by}, which is not followed", "move it away")

    def _check_regular(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise _foreign(self.path / name, "is no regular file", "move it away")

    def _check_ours(self, name: str, status: os.stat_result) -> None:
        """Check that the file is this user's, if others can change the folder.

        Raises:
            RigError: ``ForeignFile`` if that is not certain.
        """
        others = self.others
        if others is None:
            return
        path = self.path / name
        if stat.S_ISLNK(status.st_mode):
            self._refuse_link(name)
        if status.st_uid != os.geteuid():
            raise _foreign(
                path, f"belongs to {user_text(status.st_uid)}", "move it away, or run the command as the user who owns it"
            )
        self._check_regular(name, status)
        if status.st_nlink > 1:
            raise _foreign(path, f"has {status.st_nlink} names (hard links), in a folder that {others}", "move it away")

    def check_free(self, name: str) -> None:
        """Check that a file of that name, if there is one, is this user's to replace or remove.

        Raises:
            RigError: ``ForeignFile`` if it is not.
        """
        try:
            found = self._entry(name)
        except FileNotFoundError:
            return
        self._check_ours(name, found)

    def rename(self, old: str, new: str) -> None:
        """Rename, replacing ``new``; call :meth:`sync` to make it durable.

        Raises:
            RigError: ``ForeignFile`` if ``new`` may belong to another user.
        """
        self.check_free(new)
        with naming(self.path / old, self.path / new):
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def rename_new(self, old: str, new: str) -> None:
        """Rename; call :meth:`sync` to make it durable.

        Raises:
            FileExistsError: the new name exists.
        """
        if _libc.renameat2(self.fd, os.fsencode(old), self.fd, os.fsencode(new), _RENAME_NOREPLACE) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(self.path / old), None, str(self.path / new))

    def exchange(self, one: str, other: str) -> None:
        """Exchange the names of two files or folders in one step; call :meth:`sync` to make it durable.

        Raises:
            OSError: one of them is missing, or the file system cannot exchange names (EINVAL).
        """
        if _libc.renameat2(self.fd, os.fsencode(one), self.fd, os.fsencode(other), _RENAME_EXCHANGE) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(self.path / one), None, str(self.path / other))

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove the name; the target of a link stays."""
        with naming(self.path / name):
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_leftovers(self, name: str) -> None:
        """Remove temporary files for ``name`` that a kill left."""
        leftover = re.compile(re.escape(f".{name}.") + rf"[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.tmp")
        with os.scandir(self.fd) as entries:
            found = [entry.name for entry in entries if leftover.fullmatch(entry.name)]
        for entry in found:
            if self._entry(entry).st_uid == os.geteuid():
                self.unlink(entry)


def temporary_name(name: str) -> str:
    """Return an unpredictable name for a file that will become ``name``."""
    return f".{name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp"


def _with_mode(fd: int, mode: int) -> int:
    """Set the mode of a file or folder that was just created, for any umask."""
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


# --- by path ----------------------------------------------------------------------------------------------------------


@contextmanager
def held(path: Path) -> Iterator[Folder]:
    """Hold a folder for the block.

    Raises:
        RigError: ``ForeignFile`` if a link of another user is on the way to it.
        OSError: there is no such folder.
    """
    with _walked(path) as walk, naming(path):
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=walk.fd)
        except PermissionError:  # the folder can be searched, but not listed or synced
            fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=walk.fd)
    try:
        yield Folder(path, fd)
    finally:
        os.close(fd)


def open_file(path: Path, flags: int, *, mode: int = FILE_MODE) -> int:
    """Open a file by its path with :meth:`Folder.open`."""
    with held(path.parent) as folder:
        return folder.open(path.name, flags, mode=mode)


def create_file(path: Path, flags: int = os.O_RDWR, *, mode: int = FILE_MODE) -> int:
    """Create a file with that mode, for any umask, and return its descriptor.

    Raises:
        FileExistsError: the file exists.
    """
    return open_file(path, flags | os.O_CREAT | os.O_EXCL, mode=mode)


def rename(path: Path, to: Path) -> None:
    """Rename a file within its folder with :meth:`Folder.rename`."""
    with held(path.parent) as folder:
        folder.rename(path.name, to.name)


def locate(path: Path) -> int:
    """Return an ``O_PATH`` descriptor of a file that the user named; it may have any owner and type.

    Raises:
        RigError: ``ForeignFile`` if another user's link is on the way, or if the file is a hard link that another user
            may have made to a file of somebody else.
        OSError: the file cannot be reached.
    """
    with _walked(path) as walk:
        found = os.fstat(walk.fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            with held(walk.path.parent) as folder:
                if folder.others is not None and found.st_uid != os.fstat(folder.fd).st_uid:
                    names = f"has {found.st_nlink} names (hard links), in a folder that {folder.others}"
                    raise _foreign(walk.path, names, "name it by the one in its owner's folder")
        return os.dup(walk.fd)


def open_named(path: Path, flags: int, *, check: Callable[[os.stat_result], int] | None = None) -> int:
    """Open exactly the file that :func:`locate` finds; use ``O_NONBLOCK`` for named pipes.

    Args:
        path: the file.
        flags: flags of open(2).
        check: gets the file's attributes before it is opened; it raises an error to refuse the file, or returns more
            flags.
    """
    located = locate(path)
    try:
        if check is not None:
            flags |= check(os.fstat(located))
        host_calls.opening(path, flags)
        with naming(path):
            fd = os.open(f"/proc/self/fd/{located}", flags | os.O_CLOEXEC)
        host_calls.opened(path, fd)
        return fd
    finally:
        os.close(located)


def make_folder(path: Path, *, mode: int = FOLDER_MODE, parents: bool = False) -> None:
    """Create a folder with that mode, for any umask; an existing folder is no error.

    Args:
        path: the folder.
        mode: its mode.
        parents: True to create missing folders above it too.
    Raises:
        RigError: ``ForeignFile``.
        OSError: NotADirectoryError if the path is no folder, or another error.
    """
    if parents and not path.parent.exists():
        make_folder(path.parent, mode=mode, parents=True)
    with held(path.parent) as folder, naming(path):
        try:
            os.mkdir(path.name, mode, dir_fd=folder.fd)
        except FileExistsError:
            # Do not access the folder itself: it may be a mount with a dead server.
            os.close(os.open(path.name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fd))
            return
        made = os.open(path.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
        try:
            Path(f"/proc/self/fd/{made}").chmod(mode)  # a umask of all bits leaves a folder that cannot be opened
        finally:
            os.close(made)
