"""The state folder of a rig: every path below ``--dir``, and the format of the folder.

A user who can open the folder can start, inspect and end the rig, so only its owner may (mode 0700).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.os_errors import FULL, reason
from siterig.blockfs.files.ownership import check_own, check_own_below
from siterig.blockfs.files.safe_files import FOLDER_MODE
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file
from siterig.core.lock import is_locked

_WHAT = "a rig's state folder"
FORMAT = 1
"""Version of the folder's contents; another version is refused, never guessed at."""


PRIVATE_UMASK = 0o077
"""The umask of all processes of a rig: only this user may read the files that they and Node create."""
_LAST_FAULTS = "last-of-"


def default_dir() -> Path:
    """Return the default state folder: ``$XDG_STATE_HOME/siterig``, or ``~/.local/state/siterig``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "siterig"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one rig; ``root`` is absolute and free of symbolic links."""

    root: Path

    @classmethod
    def of(cls, folder: Path) -> Layout:
        """Return the layout below ``folder``, which need not exist yet.

        Raises:
            RigError: ``FolderUnusable``, or ``ForeignFile`` if a part of the path is a symbolic link of another user.
        """
        try:
            return cls(safe_files.resolve(folder.expanduser()))
        except OSError as error:
            raise RigError(Code.FolderUnusable, f"folder {folder} cannot hold a rig: {reason(error)}") from error

    @property
    def state(self) -> Path:
        """``{"format": N}``; its presence says that the folder is a rig's."""
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        """Locked by the supervisor for as long as it lives (:mod:`siterig.core.lock`); holds its process id."""
        return self.root / "lock"

    @property
    def clock(self) -> Path:
        """The page of the rig's clock (:mod:`siterig.blockfs.clocks.clock_page`)."""
        return self.root / "clock"

    @property
    def clock_faults(self) -> Path:
        """The faults of the clock that are in force (:mod:`siterig.blockfs.clocks.imposed_faults`)."""
        return self.root / "clock-faults.json"

    def socket(self, role: str) -> Path:
        """Return the Unix socket on which a role, or the supervisor, answers calls."""
        return self.root / "run" / f"{role}.sock"

    def link(self, client: str, server: str) -> Path:
        """Unix socket of the proxy of a link; it exists only while a fault rule is armed there.

        One that a killed director left refuses connections, and clients use the server's own socket then.
        """
        return self.root / "links" / f"{client}-{server}.sock"

    def way(self, client: str, server: str) -> Path:
        """Return the socket by which a client reaches a role now: that of the link's proxy, if there is one."""
        link = self.link(client, server)
        return link if os.path.lexists(link) else self.socket(server)

    def port(self, role: str) -> Path:
        """Return the file with the TCP port, on loopback, at which a role answers the other side."""
        return self.root / "run" / f"{role}.port"

    def log(self, role: str) -> Path:
        """Return the log of a role; every start of the role appends to it."""
        return self.root / "log" / f"{role}.log"

    @property
    def keys(self) -> Path:
        """Secrets, each in a file of mode 0600: keys of the cache account, of the vault, and of certificates."""
        return self.root / "keys"

    @property
    def authority(self) -> Path:
        """The authority of the vault: its key, and the register of its certificates."""
        return self.root / "authority"

    @property
    def register(self) -> Path:
        """The register of the certificates that the authority has issued."""
        return self.authority / "register.json"

    @property
    def authority_certificate(self) -> Path:
        """The certificate of the authority, for clients of the storage account."""
        return self.keys / "authority.pem"

    @property
    def vault_identity(self) -> Path:
        """The vault's certificate with its key."""
        return self.keys / "vault.pem"

    @property
    def storage_identity(self) -> Path:
        """The storage account's certificate with its key."""
        return self.keys / "storage.pem"

    @property
    def vault_keys(self) -> Path:
        """The vault's key-encryption keys (:mod:`siterig.azure_emu.vault.keys.key_file`)."""
        return self.keys / "vault.keys"

    @property
    def mail_password(self) -> Path:
        """The password of the user of the mail server (:mod:`siterig.azure_emu.vault.alerts.mail_password`)."""
        return self.keys / "mail.password"

    @property
    def metrics_token(self) -> Path:
        """The token that a reader of the metrics needs."""
        return self.keys / "metrics.token"

    @property
    def user_account(self) -> Path:
        """The storage account of a user with its secret; missing in a rig with Azurite."""
        return self.keys / "user-account.json"

    @property
    def azurite(self) -> Path:
        """Azurite's own data."""
        return self.root / "azurite"

    @property
    def site_disks(self) -> Path:
        """Backing folders of the source VMs' disks."""
        return self.root / "site" / "disks"

    @property
    def site_mount(self) -> Path:
        """Where the source VMs' disks appear as files."""
        return self.root / "site" / "mnt"

    @property
    def managed_disks(self) -> Path:
        """Managed disks of the recovery side, one folder each."""
        return self.root / "azure" / "disks"

    @property
    def azure_vms(self) -> Path:
        """Backing folders of the recovered VMs' disks."""
        return self.root / "azure" / "vms"

    @property
    def azure_mount(self) -> Path:
        """Where the recovered VMs' disks appear as files."""
        return self.root / "azure" / "mnt"

    @property
    def agent(self) -> Path:
        """The Recovery Services agent's own state and spool."""
        return self.root / "agent"

    @property
    def host_identity(self) -> Path:
        """The certificate of the Hyper-V host with its key; missing until the host is registered."""
        return self.agent / "host.pem"

    @property
    def registration(self) -> Path:
        """The vault credentials file with which the agent registers its host; it is removed afterwards."""
        return self.agent / "registration.VaultCredentials"

    @property
    def scratch(self) -> Path:
        """Files of scenarios and drills: mount points of guests, acknowledgements."""
        return self.root / "scratch"

    @property
    def faults(self) -> Path:
        """The rules of the run, for a director of faults that starts again, and the injections."""
        return self.root / "faults"

    @property
    def fault_run(self) -> Path:
        """The rules of the run with their counts (:mod:`siterig.director.run_file`)."""
        return self.faults / "run.json"

    @property
    def former_injections(self) -> Path:
        """The injections before those of :attr:`injections`."""
        return self.faults / f"{self.injections.name}.1"

    @property
    def fault_atlas(self) -> Path:
        """The seed of the fault atlas, which counts as long as the rig (:mod:`siterig.scenarios.faults.atlas`)."""
        return self.faults / "atlas-seed"

    @property
    def fault_files(self) -> tuple[Path, ...]:
        """The files of one run with faults."""
        return self.fault_run, self.injections, self.former_injections, *self.faults.glob(f"{_LAST_FAULTS}*")

    def last_faults(self, role: str) -> Path:
        """Return the last report of a process of a role that a rule killed; missing if its successor has taken it."""
        return self.faults / f"{_LAST_FAULTS}{role}.json"

    def reboot(self, host: str) -> Path:
        """Return the file with the id of the last emulated reboot of a host; missing if there was none."""
        return self.root / host / "reboot"

    @property
    def injections(self) -> Path:
        """One line of JSON for each fault that was injected."""
        return self.faults / "injections.jsonl"

    @property
    def vault_db(self) -> Path:
        """The vault's database."""
        return self.root / "vault.db"


def check_format(layout: Layout) -> None:
    """Check that the folder is a rig of this format, or can become one.

    Raises:
        RigError: ``StateVersion`` if another version created the folder, ``NotARig`` if it holds other files,
            ``FolderUnusable`` if it cannot be read or if another user can change it, its sockets or its keys.
    """
    with _usable(layout):
        _check_owner(layout)
        _check_format(layout)


def _check_owner(layout: Layout) -> None:
    check_own(layout.root, _WHAT)
    if not layout.root.is_dir():
        return
    for folder in (layout.root, layout.socket("").parent, layout.link("", "").parent, layout.keys, layout.authority):
        for path in folder.iterdir() if folder.is_dir() else ():
            check_own(path, _WHAT)


@contextlib.contextmanager
def _usable(layout: Layout) -> Iterator[None]:
    """Report an ``OSError`` of the block as ``FolderUnusable`` or ``DiskFull``: the user can correct its cause."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RigError(Code.DiskFull, f"the rig's folder {layout.root}: {reason(error)}", recoverable=True) from error
        raise RigError(Code.FolderUnusable, f"folder {layout.root} cannot hold a rig: {reason(error)}") from error


def _check_format(layout: Layout) -> None:
    root = layout.root
    try:
        found = json.loads(read_small_file(layout.state))["format"]
    except FileNotFoundError:
        # A lock alone: the first start was interrupted.  A lock that is held: state.json of a running rig was removed.
        if is_locked(layout.lock):
            return
        if root.is_dir() and {entry.name for entry in root.iterdir()} - {layout.lock.name}:
            raise RigError(
                Code.NotARig, f"folder {root} is not empty and has no state.json: name an empty or a new folder with --dir"
            ) from None
        return
    except FileTooLongError as error:
        raise RigError(Code.StateVersion, f"{layout.state} {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RigError(Code.StateVersion, f'{layout.state} is damaged: it must hold {{"format": {FORMAT}}}') from error
    if found != FORMAT:
        raise RigError(
            Code.StateVersion,
            f"{root} has state format {found!r}, this siterig understands {FORMAT}: use the siterig that created it",
        )


def restore_state(layout: Layout) -> str | None:
    """Restore ``state.json`` if it was removed from the folder of a rig, and return a remark, or None."""
    with _usable(layout):
        if layout.state.exists() or not layout.root.is_dir():
            return None
        _check_owner(layout)
        was_up = layout.lock.is_file() and layout.lock.stat().st_size > 0 and layout.socket("").parent.is_dir()
        if not was_up and not is_locked(layout.lock):
            return None
        _write_state(layout)
        return f"{layout.state} was missing and was restored"


def _write_state(layout: Layout) -> None:
    write_atomically(layout.state, json.dumps({"format": FORMAT}).encode() + b"\n")


def create(layout: Layout) -> None:
    """Create missing folders of a rig, for this user only; call :func:`check_format` first.

    Raises:
        RigError: ``DiskFull``, or ``FolderUnusable``, also if another user can change anything in the folder.
    """
    with _usable(layout):
        if layout.root.is_dir():
            check_own_below(layout.root, _WHAT, but=(layout.site_mount, layout.azure_mount))
        _create(layout)


def _create(layout: Layout) -> None:
    safe_files.make_folder(layout.root, parents=True)
    layout.root.chmod(FOLDER_MODE)
    if not layout.state.exists():
        _write_state(layout)
    for folder in (
        layout.socket("").parent,
        layout.link("", "").parent,
        layout.log("").parent,
        layout.keys,
        layout.authority,
        layout.azurite,
        layout.site_disks,
        layout.site_mount,
        layout.managed_disks,
        layout.azure_vms,
        layout.azure_mount,
        layout.agent,
        layout.scratch,
        layout.faults,
    ):
        safe_files.make_folder(folder, parents=True)
