"""Tests of Azurite as a child process: account, port, start, stop and unexpected end."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.storage import azurite
from siterig.azure_emu.storage.azurite import (
    IDENTITY,
    AzuriteProcess,
    StorageAccount,
    connection_string,
    load_or_create_account,
    start_azurite,
)
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.trust.identity import TlsContext, only

pytestmark = pytest.mark.system

PART = PartName("0f0e0d0c-0000-4000-8000-000000000001", 1, "log", 1, 7)
OTHER_DISK = PartName("0f0e0d0c-0000-4000-8000-000000000002", 1, "log", 1, 7)


@asynccontextmanager
async def running(state: Path, port: int = 0) -> AsyncIterator[AzuriteProcess]:
    started = await start_azurite(state / "azurite", state / "keys", port)
    try:
        yield started
    finally:
        await started.stop()


@asynccontextmanager
async def cache_of(account: AzuriteProcess | str, tls: TlsContext | None = None) -> AsyncIterator[BlobCacheAccount]:
    cache = BlobCacheAccount(account if isinstance(account, str) else account.connection_string, tls=tls)
    try:
        yield cache
    finally:
        cache.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_the_cache_account_puts_once_lists_gets_and_deletes(tmp_path: Path) -> None:
    async with running(tmp_path) as started, cache_of(started) as cache:
        await cache.ensure_container()
        await cache.ensure_container()
        assert await cache.put(PART, b"first") is True
        assert await cache.put(PART, b"second") is False
        assert await cache.put(OTHER_DISK, b"other") is True
        assert (await cache.list(PART.disk_id)).parts == [PART]
        assert await cache.get(PART) == b"first"
        await cache.delete(PART)
        await cache.delete(PART)
        assert (await cache.list(PART.disk_id)).parts == []
        with pytest.raises(RigError, match="is not in container asr-cache") as caught:
            await cache.get(PART)
        assert caught.value.code == "PartNotFound"


async def test_a_container_that_azurite_lost_is_created_again(tmp_path: Path) -> None:
    async with running(tmp_path) as started, cache_of(started) as cache:
        assert (await cache.list(PART.disk_id)).parts == []
        await cache.delete_container()
        assert await cache.put(PART, b"data") is True
        assert await cache.get(PART) == b"data"


async def test_blobs_port_and_account_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as first, cache_of(first) as cache:
        await cache.put(PART, b"kept")
    async with running(tmp_path) as second:
        assert (second.port, second.account) == (first.port, first.account)
        stored = connection_string(tmp_path / "azurite", tmp_path / "keys")
        assert stored == second.connection_string
        async with cache_of(stored) as cache:
            assert await cache.get(PART) == b"kept"


async def test_https_follows_a_new_certificate_without_a_failed_request(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", SYSTEM_CLOCK)
    identity = tmp_path / "keys" / IDENTITY
    authority.replace_identity(identity, "storage", "cache")
    tls = TlsContext(False, authority=authority.certificate, clock=SYSTEM_CLOCK, check=only("storage"))

    def shown(port: int) -> tuple[str | None, object]:
        with socket.create_connection(("127.0.0.1", port)) as plain, tls.wrap_socket(plain) as secure:
            return secure.version(), (secure.getpeercert() or {})["serialNumber"]

    async with running(tmp_path) as started, cache_of(started, tls) as cache:
        await started.check()
        version, first = await trio.to_thread.run_sync(shown, started.port)
        assert version == "TLSv1.3"
        await cache.put(PART, b"under load")
        authority.replace_identity(identity, "storage", "cache")
        with trio.fail_after(60):
            while (await trio.to_thread.run_sync(shown, started.port))[1] == first:
                await cache.put(PART, b"under load", replace=True)
        assert await cache.get(PART) == b"under load"
        async with cache_of(started.account.connection_string(started.port), tls) as plain:
            with pytest.raises(RigError) as caught:
                await plain.get(PART)
            assert caught.value.code == "CacheUnreachable"
        async with cache_of(started) as stranger:
            with pytest.raises(RigError) as caught:
                await stranger.get(PART)
            assert caught.value.code == "PeerRefused"


async def test_health_checks_use_one_connection_and_find_an_azurite_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[trio.SocketStream] = []
    connect = trio.open_tcp_stream

    async def counted(host: str, port: int) -> trio.SocketStream:
        made.append(await connect(host, port))
        return made[-1]

    async with running(tmp_path) as started:
        monkeypatch.setattr(trio, "open_tcp_stream", counted)
        for _ in range(3):
            await started.check(timeout_s=10)
        assert len(made) == 1
        with socket.socket(fileno=os.dup(made[0].socket.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)  # as a server does that ends an idle connection
        await started.check(timeout_s=10)
        assert len(made) == 2, "a connection that had ended was taken for an answer"
        os.kill(started.pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(RigError, match=r"does not answer: no answer within 0\.1 s"):
                await started.check(timeout_s=0.1)
        os.kill(started.pid, signal.SIGCONT)
        await started.check(timeout_s=10)


async def test_a_wrong_key_is_an_authentication_error_without_the_key(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        wrong = StorageAccount(started.account.name, "A" * 86 + "==")
        async with cache_of(wrong.connection_string(started.port)) as cache:
            with pytest.raises(RigError) as caught:
                await cache.put(PART, b"x")
    assert caught.value.code == "CacheAuthentication"
    assert not caught.value.recoverable
    assert wrong.key not in caught.value.message


async def test_a_stopped_azurite_is_a_recoverable_error(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        pass
    async with cache_of(started) as cache:
        with pytest.raises(RigError) as caught:
            await cache.put(PART, b"x")
    assert (caught.value.code, caught.value.recoverable) == ("CacheUnreachable", True)
    assert caught.value.message == (
        f"cannot put {PART.blob()}: no answer from cache storage account {started.account.name}"
        f" at 127.0.0.1:{started.port} (Connection refused)"
    )


async def test_the_key_is_in_no_argument_and_its_file_is_private(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        arguments = Path(f"/proc/{started.pid}/cmdline").read_bytes()
        assert b"--disableTelemetry" in arguments
        assert started.account.key.encode() not in arguments
        assert started.account.key not in repr(started)
        assert stat.S_IMODE((tmp_path / "keys" / "account.key").stat().st_mode) == 0o600


async def test_an_error_names_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RigError) as caught:
            await start_azurite(tmp_path / "azurite", tmp_path / "keys", port)
    assert caught.value.code == "PortTaken"
    assert caught.value.message == f"port {port} on 127.0.0.1 is taken by another program: stop it (ss -ltnp shows it)"


async def test_a_stored_port_that_is_taken_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        pass
    with (
        socket.create_server(("127.0.0.1", started.port)),
        pytest.raises(RigError, match=f"port {started.port} on") as caught,
    ):
        await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    assert caught.value.code == "PortTaken"


async def test_the_role_raises_when_azurite_is_killed(tmp_path: Path) -> None:
    with pytest.RaisesGroup(RigError) as caught:
        async with trio.open_nursery() as nursery:
            started = await nursery.start(azurite.run_azurite, tmp_path / "azurite", tmp_path / "keys", 0)
            os.kill(started.pid, signal.SIGKILL)
    error = caught.value.exceptions[0]
    assert isinstance(error, RigError)
    assert error.code == "AzuriteDied"
    assert f"(process {started.pid}) was ended by SIGKILL" in error.message


async def test_a_cancelled_role_leaves_no_process(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        started = await nursery.start(azurite.run_azurite, tmp_path / "azurite", tmp_path / "keys", 0)
        nursery.cancel_scope.cancel()
    assert not is_alive(started.pid)


async def test_an_azurite_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        os.kill(started.pid, signal.SIGSTOP)  # a stopped process does not act on SIGTERM
        await started.stop(timeout_s=0.2)
        assert not is_alive(started.pid)


async def test_an_azurite_that_fails_to_start_shows_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "azurite-blob"
    script.write_text("console.error('no such luck'); process.exit(3)")
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    with pytest.raises(RigError) as caught:
        await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    assert caught.value.message == "Azurite exited with status 3 while starting; its last output: no such luck"


@pytest.mark.parametrize("name", ["applicationinsights", "sequelize"])
async def test_azurite_does_not_load_modules_that_it_does_not_use(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "azurite-blob"  # neither module can be found from here
    script.write_text(f"console.error('loaded', typeof require('{name}'), typeof require('fs').open); process.exit(3)")
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    with pytest.raises(RigError) as caught:
        await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    assert caught.value.message.endswith("its last output: loaded object function")


async def test_azurite_keeps_its_metadata_in_files_despite_a_variable_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AZURITE_DB, which the user may have set for another Azurite, would move the metadata into a database."""
    monkeypatch.setenv("AZURITE_DB", "mysql://nowhere")
    azurite = await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    await azurite.stop()
    assert (tmp_path / "azurite" / "__azurite_db_blob__.json").is_file()


async def test_an_azurite_that_never_gets_ready_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "azurite-blob"
    script.write_text("console.log('thinking', process.pid); setInterval(() => {}, 1000)")
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    with pytest.raises(RigError) as caught:
        await start_azurite(tmp_path / "azurite", tmp_path / "keys", ready_timeout_s=2)
    assert caught.value.code == "AzuriteSilent"
    before, _, pid = caught.value.message.rpartition("thinking ")
    assert before == "Azurite was not ready after 2 s; its last output: "
    assert not is_alive(int(pid))


async def test_azurite_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, trio, pathlib\n"
        "from siterig.azure_emu.storage.azurite import start_azurite\n"
        "async def main():\n"
        "    state = pathlib.Path(sys.argv[1])\n"
        "    started = await start_azurite(state / 'azurite', state / 'keys')\n"
        "    print(started.pid, flush=True)\n"
        "    await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220  (a program that is to be killed)
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await trio.to_thread.run_sync(parent.stdout.readline))
    pidfd = os.pidfd_open(pid)
    try:
        parent.kill()
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        parent.stdout.close()
        parent.wait()


async def test_a_damaged_key_file_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "account.key").write_text("garbage")
    with pytest.raises(RigError, match="does not hold NAME:KEY") as caught:
        load_or_create_account(tmp_path)
    assert caught.value.code == "BadAccountKey"
    assert (tmp_path / "account.key").read_text() == "garbage"


async def test_a_missing_azurite_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITERIG_AZURITE", "/nonexistent/azurite-blob")
    with pytest.raises(RigError) as caught:
        azurite.find_azurite()
    assert caught.value.message == (
        "SITERIG_AZURITE names /nonexistent/azurite-blob, which is no file: name Azurite's azurite-blob script"
    )
