"""Azurite's blob service as a child process on the loopback interface.

There is one child at a time for each folder; the caller holds the lock of the state.  Port and account are chosen once and
stored, so that a connection string stays valid over restarts, until the keys are rotated
(:mod:`siterig.azure_emu.storage.account_keys`).  With a file ``storage.pem`` in the folder of the keys
(:mod:`siterig.blockfs.trust.identity`) it speaks HTTPS, with TLS 1.3; when the file is replaced, Node uses the new
certificate for all later connections.  When the file of the account's keys is replaced, Azurite accepts those.

Fault contract: Azurite writes its metadata every few seconds, so a killed Azurite may forget requests that it acknowledged;
SIGTERM makes it save.  The uploading side must find out which requests were forgotten, and send them again.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.storage import child_process
from siterig.azure_emu.storage.azurite_files import find_node, find_script
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.os_errors import reason

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 1.0
CHECKS_PER_CONNECTION = 30
"""After so many health checks the next one is made on a new connection: Azurite must accept one, too."""
_WITHOUT_UNUSED = Path(__file__).with_name("without_unused.cjs")

CONTAINER = "asr-cache"
"""The container of all parts."""
ACCOUNT_KEYS = "account.key"
"""The file with the name and the keys of the account, in the folder of the keys."""
IDENTITY = "storage.pem"
"""The file with the certificate of the account and its key, in the folder of the keys."""
_READY = re.compile(r"successfully listens on https?://[^:]+:(\d+)")
_TAIL_LINES = 12
_LINE_BYTES_MAX = 65536

log = structlog.get_logger(__name__)

_KEY_FILE_BYTES_MAX = 4096
_KEY = r"[A-Za-z0-9+/]{32,}={0,2}"


@dataclass(frozen=True, slots=True)
class StorageAccount:
    """Name and keys of a storage account; ``repr`` does not show the keys.

    Attributes:
        key: the key that clients use.
        other_key: a second key that the account accepts; empty if there is none.
    """

    name: str
    key: str = field(repr=False)
    other_key: str = field(default="", repr=False)

    @property
    def keys_text(self) -> str:
        """Name and keys as the file of the keys and Azurite have them; the text must not be logged."""
        return ":".join(filter(None, (self.name, self.key, self.other_key)))

    def connection_string(self, port: int, *, is_tls: bool = False) -> str:
        """Return the connection string for the Azure SDK; it holds the key, so it must not be logged."""
        scheme = "https" if is_tls else "http"
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={self.name};AccountKey={self.key};"
            f"BlobEndpoint={scheme}://{HOST}:{port}/{self.name};"
        )


def load_or_create_account(keys_folder: Path) -> StorageAccount:
    """Return the account of this state from the file ``account.key`` (mode 0600); create a random one the first time.

    Raises:
        RigError: ``BadAccountKey`` if the file holds something else.
    """
    path = keys_folder / ACCOUNT_KEYS
    if not path.exists():
        safe_files.make_folder(keys_folder, parents=True)
        store_account(keys_folder, StorageAccount(f"siterig{secrets.token_hex(4)}", new_key()))
    with os.fdopen(safe_files.open_file(path, os.O_RDONLY)) as file:
        name, *keys = file.read(_KEY_FILE_BYTES_MAX).strip().split(":")
    is_name, are_keys = re.fullmatch(r"[a-z0-9]{3,24}", name), [re.fullmatch(_KEY, key) for key in keys]
    if not is_name or len(keys) not in (1, 2) or not all(are_keys):
        raise RigError(
            Code.BadAccountKey,
            f"{path} does not hold NAME:KEY or NAME:KEY:KEY of a storage account; restore it, or start from a new state "
            "folder",
        )
    return StorageAccount(name, *keys)


def store_account(keys_folder: Path, account: StorageAccount) -> None:
    """Replace the file of the account's keys; a running Azurite accepts these keys, and only these, soon afterwards."""
    write_atomically(keys_folder / ACCOUNT_KEYS, f"{account.keys_text}\n".encode())


def new_key() -> str:
    """Return a random account key."""
    return base64.b64encode(secrets.token_bytes(64)).decode()


def connection_string(folder: Path, keys_folder: Path) -> str:
    """Return the connection string of the Azurite on these folders.

    Raises:
        RigError: ``AzuriteNotStarted`` before its first start.
    """
    account = load_or_create_account(keys_folder)
    return account_string(folder, account, is_tls=(keys_folder / IDENTITY).exists())


def account_string(folder: Path, account: StorageAccount, *, is_tls: bool) -> str:
    """Return the connection string of the Azurite on a folder, with the first key of ``account``.

    Raises:
        RigError: ``AzuriteNotStarted`` before its first start.
    """
    port = _stored_port(folder)
    if port is None:
        raise RigError(Code.AzuriteNotStarted, f"Azurite was never started on {folder}: its folder has no port file")
    return account.connection_string(port, is_tls=is_tls)


@dataclass(slots=True)
class AzuriteProcess:
    """A running Azurite; the kernel kills it if the thread that started it (the trio thread) ends."""

    account: StorageAccount
    port: int
    is_tls: bool
    _child: subprocess.Popen[bytes]
    _output: trio.lowlevel.FdStream
    _tail: deque[str]
    _checked: trio.abc.Stream | None = None
    """The connection of the health checks, kept because a handshake costs more than a check."""
    _checks: int = 0

    @property
    def connection_string(self) -> str:
        """Return the connection string for the Azure SDK; it holds the key, so it must not be logged."""
        return self.account.connection_string(self.port, is_tls=self.is_tls)

    @property
    def pid(self) -> int:
        """The process id of Node."""
        return self._child.pid

    async def ready(self, *, timeout_s: float) -> int:
        """Wait for the line that reports readiness; return the port.  It raises the errors of :func:`start_azurite`."""
        with trio.move_on_after(timeout_s):
            if (found := await _drain(self._output, self._tail, until=_READY)) is not None:
                return int(found[1])
            how = child_process.how_it_ended(await child_process.wait(self._child))
            if any("EADDRINUSE" in line for line in self._tail):
                raise _port_taken(self.port)
            raise RigError(Code.AzuriteDied, f"Azurite {how} while starting; its last output: {_quote(self._tail)}")
        raise RigError(
            Code.AzuriteSilent, f"Azurite was not ready after {timeout_s:g} s; its last output: {_quote(self._tail)}"
        )

    async def died(self) -> RigError:
        """Wait until Azurite ends; return an error with its exit status and its last output."""
        await _drain(self._output, self._tail)
        how = child_process.how_it_ended(await child_process.wait(self._child))
        return RigError(Code.AzuriteDied, f"Azurite (process {self.pid}) {how}; its last output: {_quote(self._tail)}")

    async def check(self, *, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Check that Azurite answers a request in time; any answer is right.

        Several checks use one connection; one that fails on it is repeated on a new one.

        Raises:
            RigError: ``AzuriteSilent`` (recoverable).
        """
        why: str | None = f"no answer within {timeout_s:g} s"
        with trio.move_on_after(timeout_s):
            if self._checked is not None and self._checks < CHECKS_PER_CONNECTION and await self._ask() is None:
                return
            why = await self._ask(afresh=True)
        if why is not None:
            await self._end_checks()
            raise RigError(Code.AzuriteSilent, f"Azurite (process {self.pid}) does not answer: {why}", recoverable=True)

    async def _ask(self, *, afresh: bool = False) -> str | None:
        """Make a request, on a new connection or on that of the check before; return None, or why there is no answer."""
        try:
            if afresh:
                await self._end_checks()
                self._checked, self._checks = await self._connect(), 0
            assert self._checked is not None  # noqa: S101 (the caller has looked)
            self._checks += 1
            await self._checked.send_all(b"HEAD / HTTP/1.1\r\nHost: azurite\r\n\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer:  # the answer to HEAD has no body
                if not (piece := await self._checked.receive_some(4096)):
                    return "it closed the connection"
                answer += piece
        except (OSError, trio.BrokenResourceError) as error:
            return str(error)
        return None

    async def _end_checks(self) -> None:
        if self._checked is not None:
            stream, self._checked = self._checked, None
            await trio.aclose_forcefully(stream)

    async def _connect(self) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(HOST, self.port)
        return trio.SSLStream(stream, _unchecked(), https_compatible=True) if self.is_tls else stream

    async def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send SIGTERM, so that it saves its metadata, and SIGKILL after ``timeout_s``; no-op if it has ended.

        Cancellation does not interrupt this call.
        """
        with trio.CancelScope(shield=True):
            await self._end_checks()
            self._child.send_signal(signal.SIGTERM)
            with trio.move_on_after(timeout_s):
                with suppress(trio.BusyResourceError, trio.ClosedResourceError):  # a task waits in died(), which drains
                    await _drain(self._output, self._tail)
                await child_process.wait(self._child)
            if self._child.poll() is None:
                log.warning("azurite_killed", pid=self.pid, waited_s=timeout_s)
                self._child.kill()
                await child_process.wait(self._child)
            await self._output.aclose()


async def start_azurite(
    folder: Path,
    keys_folder: Path,
    port: int = 0,
    *,
    ready_timeout_s: float = START_TIMEOUT_S,
    takes_any_token: bool = False,
) -> AzuriteProcess:
    """Start Azurite's blob service and return when it serves.

    Args:
        folder: its data.
        keys_folder: the folder of the account's key.
        port: the port; 0 takes the port of the last start on this folder, otherwise any free one.
        ready_timeout_s: limit of the wait for readiness.
        takes_any_token: it accepts tokens (OAuth) with HTTPS; it does not check their signatures, so this is for tests only.
    Raises:
        RigError: ``AzuriteMissing``, ``NodeMissing``, ``PortTaken``, ``AzuriteDied``; ``AzuriteSilent`` if it is not ready
            in time.
    """
    command = find_azurite()
    account = load_or_create_account(keys_folder)
    port = _prepare(folder, port)
    if port:
        _check_port_is_free(port)
    identity = keys_folder / IDENTITY
    is_tls = identity.exists()
    arguments = [*command, *_arguments(folder, port), *(_tls_arguments(identity) if is_tls else ())]
    arguments += ["--oauth", "basic"] if takes_any_token else []
    child, output = _spawn(arguments, account, keys_folder / ACCOUNT_KEYS)
    azurite = AzuriteProcess(account, port, is_tls, child, output, deque(maxlen=_TAIL_LINES))
    try:
        azurite.port = await azurite.ready(timeout_s=ready_timeout_s)
        write_atomically(folder / "port", f"{azurite.port}\n".encode())
    except BaseException:
        await azurite.stop()
        raise
    return azurite


async def run_azurite(
    folder: Path,
    keys_folder: Path,
    port: int = 0,
    *,
    task_status: trio.TaskStatus[AzuriteProcess] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run Azurite until cancelled, then stop it cleanly.

    Raises:
        RigError: ``AzuriteDied`` if it ends by itself; the errors of :func:`start_azurite`.
    """
    azurite = await start_azurite(folder, keys_folder, port)
    try:
        task_status.started(azurite)
        raise await azurite.died()
    finally:
        await azurite.stop()


def find_azurite() -> list[str]:
    """Return the command line of Node and Azurite's script, without arguments for the script.

    Raises:
        RigError: ``AzuriteMissing``, ``NodeMissing``.
    """
    script = find_script()
    return [find_node(), "--tls-min-v1.3", "--require", str(_WITHOUT_UNUSED), str(script)]


def _arguments(folder: Path, port: int) -> list[str]:
    return [
        *("--blobHost", HOST, "--blobPort", str(port), "--location", str(folder)),
        *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
    ]


def _tls_arguments(identity: Path) -> list[str]:
    """Return the options for HTTPS; OpenSSL looks for the key and for the certificate in the same file."""
    return ["--cert", str(identity), "--key", str(identity)]


def _unchecked() -> ssl.SSLContext:
    """Return settings for the question whether the own child answers: nothing secret is sent, and nothing is believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _spawn(
    command: list[str], account: StorageAccount, keys: Path
) -> tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream]:
    environment = {**os.environ, "AZURITE_ACCOUNTS": account.keys_text, "SITERIG_ACCOUNT_KEYS": str(keys.absolute())}
    environment.pop("AZURITE_DB", None)  # metadata would be in a database that the user has for another Azurite
    # Not trio.run_process: it forks in a worker thread, and a parent-death signal fires when the forking *thread* ends.
    # The signal is SIGKILL, because a child that hangs in its clean-up must not remain either.
    readable, writable = os.pipe()
    try:
        child = subprocess.Popen(
            [*child_process.KILLED_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=writable,
            stderr=writable,
            start_new_session=True,  # Ctrl-C reaches this process, which stops the child cleanly
            env=environment,
        )
    except OSError as e:
        os.close(readable)
        raise RigError(Code.AzuriteMissing, f"cannot start {command[0]} through setpriv (util-linux): {reason(e)}") from e
    finally:
        os.close(writable)
    return child, trio.lowlevel.FdStream(readable)


async def _drain(
    output: trio.lowlevel.FdStream, tail: deque[str], *, until: re.Pattern[str] | None = None
) -> re.Match[str] | None:
    """Read output into ``tail`` up to a line that matches ``until``; return the match, or None at the end of the output."""
    rest = b""
    while chunk := await output.receive_some(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-_LINE_BYTES_MAX:]
        for line in filter(None, (raw.decode(errors="replace").strip() for raw in lines)):
            tail.append(line)
            if until is not None and (found := until.search(line)):
                return found
    if rest.strip():
        tail.append(rest.decode(errors="replace").strip())
    return None


def _quote(tail: deque[str]) -> str:
    return " | ".join(tail) or "(none)"


def _stored_port(folder: Path) -> int | None:
    try:
        text = (folder / "port").read_text().strip()
    except FileNotFoundError:
        return None
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise RigError(Code.BadPort, f"{folder / 'port'} holds {text!r}; allowed: a port from 1 to 65535; remove the file")
    return int(text)


def _prepare(folder: Path, port: int) -> int:
    """Create the folder; return the requested port, otherwise the stored one, otherwise 0 for any free port."""
    safe_files.make_folder(folder, parents=True)
    return port or _stored_port(folder) or 0


def _check_port_is_free(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as e:
        raise _port_taken(port) from e


def _port_taken(port: int) -> RigError:
    return RigError(Code.PortTaken, f"port {port} on {HOST} is taken by another program: stop it (ss -ltnp shows it)")
