"""The page of a rig's clock: a small file that all roles map, with the terms of time and a slot for each role.

The format is in ``docs/reference/formats/clock-page.md``.  A change is written to the half of the page that is not valid;
then the sequence number names that half.  The write of the number is also the event (inotify) that wakes the roles; each
one then writes the number of the change to its slot.

Fault contract: the page can be killed at any moment and is not synced; after a power loss it is valid, older, or damaged.
A damaged one is refused with its path and the field, and never guessed at: remove it, and the clock is the system's again.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.clocks.clock_terms import ROLES_MAX, SECOND_NS, SWITCH_NS, TERMS_BYTES, ClockTerms, KernelTimes
from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import rename_new
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.ownership import changed_by_others

MAGIC = b"SRIGCLCK"
VERSION = 1
PAGE_BYTES = 4096
SEQUENCE_AT, TERMS_AT, TERMS_STEP, SLOTS_AT, SLOT_BYTES = 16, 64, 896, 2048, 64
ROLE_NAME = re.compile(r"[a-z][a-z0-9-]{0,22}")

_HEADER = struct.Struct("<8sII")
_SEQUENCE = struct.Struct("<Q")
_SLOT = struct.Struct("<24sQQQ")
_ACKNOWLEDGED_AT = 40
"""Offset of the acknowledged change in a slot."""


@dataclass(frozen=True, slots=True)
class RoleSlot:
    """One role on the page: its last process, and the last change that this process has taken over."""

    number: int
    name: str
    process: HostProcess | None
    acknowledged: int


def page_bytes() -> bytes:
    """Return a new page: the clock is the system's."""
    page = bytearray(PAGE_BYTES)
    _HEADER.pack_into(page, 0, MAGIC, VERSION, ROLES_MAX)
    terms = ClockTerms().encode()
    page[TERMS_AT : TERMS_AT + len(terms)] = terms
    return bytes(page)


def ensure_page(path: Path) -> None:
    """Make the page of a rig, for this user only, unless there is one."""
    if path.exists():
        return
    temporary = path.with_name(safe_files.temporary_name(path.name))
    fd = safe_files.create_file(temporary)
    try:
        os.write(fd, page_bytes())
    finally:
        os.close(fd)
    try:
        rename_new(temporary, path)
    except FileExistsError:  # another process made it in the same moment
        temporary.unlink()


class ClockPage:
    """The open page of one rig; close it after use."""

    def __init__(self, path: Path) -> None:
        """Open the page.

        Raises:
            RigError: ``ClockDamaged`` if it is no valid page, ``FolderUnusable`` if another user may change it.
            FileNotFoundError: there is none.
        """
        self.path = path
        self.fd = safe_files.open_file(path, os.O_RDWR)
        try:
            self._check_file()
            self.terms()
            self.slots()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ClockPage:
        """Return the page."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the page."""
        self.close()

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _check_file(self) -> None:
        found = os.fstat(self.fd)
        others = changed_by_others(self.fd)
        if others is None and stat.S_IMODE(found.st_mode) & 0o077:
            others = f"can be read by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        if others is not None:
            raise RigError(Code.FolderUnusable, f"{self.path}: {others}; the clock of a rig is its owner's: chmod 600 it")
        if found.st_size != PAGE_BYTES:
            raise self._damaged(f"it has {found.st_size} bytes; a page has {PAGE_BYTES}")
        magic, version, roles = _HEADER.unpack(self._read(0, _HEADER.size))
        if magic != MAGIC:
            raise self._damaged(f"it begins with {magic!r}; a page begins with {MAGIC!r}")
        if (version, roles) != (VERSION, ROLES_MAX):
            text = f"{self.path} has version {version} with {roles} roles; this siterig reads version {VERSION}"
            raise RigError(Code.StateVersion, f"{text} with {ROLES_MAX}: use the siterig that made it")

    def _damaged(self, what: str) -> RigError:
        return RigError(
            Code.ClockDamaged,
            f"{self.path} is damaged: {what}; end the rig and remove the file: the clock is then the system's",
        )

    def _read(self, at: int, length: int) -> bytes:
        data = os.pread(self.fd, length, at)
        if len(data) != length:
            raise self._damaged(f"it ends at byte {at + len(data)}; a page has {PAGE_BYTES} bytes")
        return data

    @property
    def sequence(self) -> int:
        """The number of the last change."""
        number: int = _SEQUENCE.unpack(self._read(SEQUENCE_AT, _SEQUENCE.size))[0]
        return number

    def terms(self) -> ClockTerms:
        """Return the valid terms.

        Raises:
            RigError: ``ClockDamaged``.
        """
        problem = ""
        for _ in range(8):  # a writer may change them between two reads
            sequence = self.sequence
            data = self._read(TERMS_AT + (sequence & 1) * TERMS_STEP, TERMS_BYTES)
            try:
                return ClockTerms.decode(data, sequence)
            except ValueError as error:
                problem = str(error)
        raise self._damaged(problem)

    # --- slots ---

    def slots(self) -> list[RoleSlot]:
        """Return the slots that are in use.

        Raises:
            RigError: ``ClockDamaged``.
        """
        data = self._read(SLOTS_AT, ROLES_MAX * SLOT_BYTES)
        found = []
        for number in range(ROLES_MAX):
            raw, pid, started, acknowledged = _SLOT.unpack_from(data, number * SLOT_BYTES)
            name = raw.rstrip(b"\0").decode("ascii", errors="replace")
            if not name:
                continue
            if not ROLE_NAME.fullmatch(name):
                raise self._damaged(f"the name of role {number} is {name!r}; allowed are small letters, digits and -")
            if pid >= 1 << 31 or started >= 1 << 63:
                raise self._damaged(f"the process of role {name!r} is {pid}; allowed are numbers below {1 << 31}")
            process = HostProcess(pid=pid, started=started) if pid else None
            found.append(RoleSlot(number, name, process, acknowledged))
        return found

    def slot_of(self, role: str) -> RoleSlot | None:
        """Return the slot of a role; None if it has none."""
        return next((slot for slot in self.slots() if slot.name == role), None)

    def claim(self, role: str, process: HostProcess | None = None) -> RoleSlot:
        """Return the slot of a role, which gets one if it has none; with ``process`` the slot is that process's now."""
        if not ROLE_NAME.fullmatch(role):
            raise RigError(Code.NoSuchRole, f"role {role!r}: a name has small letters, digits and -, at most 23")
        with self._locked():
            known = self.slots()
            mine = next((slot for slot in known if slot.name == role), None)
            if mine is None:
                free = set(range(ROLES_MAX)) - {slot.number for slot in known}
                if not free:
                    raise RigError(Code.InvalidClock, f"role {role!r}: all {ROLES_MAX} slots for roles are in use")
                mine = RoleSlot(min(free), role, None, 0)
            if process is not None:
                mine = RoleSlot(mine.number, role, process, self.sequence)
            number = mine.process
            pid, started = (0, 0) if number is None else (number.pid, number.started)
            data = _SLOT.pack(role.encode(), pid, started, mine.acknowledged)
            os.pwrite(self.fd, data, SLOTS_AT + mine.number * SLOT_BYTES)
        return mine

    def acknowledge(self, slot: int, generation: int) -> None:
        """Record that a role has taken over all changes up to ``generation``; it is an event for those that wait for it."""
        os.pwrite(self.fd, _SEQUENCE.pack(generation), SLOTS_AT + slot * SLOT_BYTES + _ACKNOWLEDGED_AT)

    # --- changes ---

    def change(self, make: Callable[[ClockTerms, KernelTimes], ClockTerms]) -> ClockTerms:
        """Replace the terms by those that ``make`` returns, and wake the roles; other writers wait meanwhile.

        ``make`` gets the terms and the time now.  If it returns the same terms, nothing is changed.

        Raises:
            RigError: ``ClockDamaged``, or the error of ``make``: nothing was changed.
        """
        with self._locked():
            before = self.terms()
            _wait_for_rate(before)  # a writer may have been killed in its wait, and terms have only one former rate
            after = make(before, KernelTimes.now())
            if after == before:
                return before
            os.pwrite(self.fd, after.encode(), TERMS_AT + (after.generation & 1) * TERMS_STEP)
            os.pwrite(self.fd, _SEQUENCE.pack(after.generation), SEQUENCE_AT)
            _wait_for_rate(after)
        return after

    def settle_after_reboot(self) -> None:
        """Adapt the terms to the kernel's clocks of this boot; call it before the roles start."""
        now = boot.kernel_boot_id()
        self.change(lambda terms, kernel: terms.after_reboot(kernel) if terms.generation and terms.boot_id != now else terms)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except OSError as error:
            raise RigError(Code.ClockDamaged, f"{self.path} cannot be locked: {reason(error)}") from error
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)


def _wait_for_rate(terms: ClockTerms) -> None:
    """Wait until the rate of the terms is in force."""
    left_ns = terms.rate_from_ns - SYSTEM_CLOCK.monotonic_ns()
    if 0 < left_ns <= SWITCH_NS:
        SYSTEM_CLOCK.sleep_thread(left_ns / SECOND_NS)
