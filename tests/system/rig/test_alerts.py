"""Alerts of a rig reach their receivers: the threshold of the RPO, a server that is away, kills of the vault, a folder.

One rig is used for all steps.  Its clock is controlled, so that minutes pass at once, and the mail server is a real one.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.message import EmailMessage
from functools import partial
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from siterig.azure_emu.vault.alerts import mail_queue
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.rigs.mail_server import MailServerState, mail_server
from tests.support.rigs.protected_vm import siterig
from tests.support.warm_command import run_warm

pytestmark = pytest.mark.system

VM = "web01"
TO, OWNER = "dr@example.com", "owner@example.com"
RPO_MAIL = "[siterig] Warning: RpoAboveThreshold of web01"
WITHIN_S = 180
"""The time limit of all steps together, far beyond their usual time: a loaded machine is slow."""
MINUTE_NS = 60 * SECOND_NS


async def until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    with trio.move_on_after(60):
        while not await check():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.1)
        return
    pytest.fail(f"not within 60 s: {what}")


def parsed(mail: bytes) -> EmailMessage:
    found = email.message_from_bytes(mail, policy=email.policy.SMTP)
    assert not found.defects
    return found


async def codes(rig: Testbed) -> Counter[tuple[str, str]]:
    return Counter((event.eventCode, event.severity) for event in await rig.vault.events())


async def test_alerts_of_a_rig_reach_their_receivers(tmp_path: Path) -> None:
    with mail_server(tmp_path) as server:  # it ends, and its port is free
        port = server.port
    folder = tmp_path / "mail"
    folder.mkdir()
    with trio.fail_after(WITHIN_S):
        async with Testbed.up(tmp_path / "rig") as rig:
            await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=1 << 20)])
            await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=1))
            with RigClockControl(rig.layout.clock) as clock:
                await the_figures_of_the_roles_are_metrics(rig)
                await wrong_settings_are_refused(rig)
                await a_server_that_is_away_blocks_nothing(rig, clock, port)
                with mail_server(tmp_path, port=port) as server:
                    await each_mail_arrives_once_after_a_kill(rig, server)
                    await a_kill_before_the_note_of_a_delivery_repeats_the_same_mail(rig, clock, server)
                await mail_into_a_folder(rig, clock, folder)


async def the_figures_of_the_roles_are_metrics(rig: Testbed) -> None:
    await rig.vault.create_point(vm=VM, kind="CrashConsistent", name="applied")
    families = text_string_to_metric_families(await siterig(rig, "metrics"))
    found = {sample.name: sample for family in families for sample in family.samples}
    for name in ("vm_uploaded_bytes_total", "vm_applied_parts_total"):
        assert found[f"siterig_{name}"].value > 0
        assert found[f"siterig_{name}"].labels == {"vm": VM}
    assert found["siterig_vm_account_bytes"].value >= 0
    assert found["siterig_rig_free_bytes"].value > 0
    assert "siterig_vm_copy_done_bytes" not in found


async def wrong_settings_are_refused(rig: Testbed) -> None:
    """Errors name the option, the value and the allowed values, and change nothing."""
    before = await siterig(rig, "alert", "show", "--json")
    for words, text in (
        (["--to", "a@b.c\r\nBcc: x@y.z"], r"--to is 'a@b.c\r\nBcc: x@y.z'; allowed: NAME@HOST"),
        (["--server", "mail:99999"], "--server is 99999; allowed: 1 to 65535"),
        (["--folder", "/no/such/folder"], "--folder is '/no/such/folder'; allowed: a folder that exists"),
        (["--send-to-owners"], "--send-to-owners is true; allowed: true only with addresses of owners"),
        (["--rpo-threshold", "0.5"], "--rpo-threshold is 30 s; allowed: 60 s to 86400 s"),
        (["--rpo-threshold", "nan"], "--rpo-threshold: nan is not a number of minutes"),
        (["--server", "mail", "--off"], "--folder, --server and --off exclude each other"),
        (["--user", "rig"], "need a server"),
    ):
        done = await trio.to_thread.run_sync(run_warm, "alert", "set", *words, "--dir", rig.layout.root)
        assert (done.returncode, done.stdout, text in done.stderr) == (2, "", True), done.stderr
        assert done.stderr.count("\n") == 1
    assert await siterig(rig, "alert", "show", "--json") == before


async def a_server_that_is_away_blocks_nothing(rig: Testbed, clock: RigClockControl, port: int) -> None:
    options = ["--to", TO, "--owner", OWNER, "--send-to-owners", "--server", f"127.0.0.1:{port}", "--security", "none"]
    answer = json.loads(await siterig(rig, "alert", "set", *options, "--rpo-threshold", "1", "--json"))
    assert answer["settings"]["rpo_threshold_s"] == 60
    await rig.supervisor.kill_role(name="agent", hold=True)
    await clock.advance(2 * MINUTE_NS)
    await until("the event", lambda: _has(rig, "RpoAboveThreshold", "Warning"))
    await clock.advance(10 * SECOND_NS)
    await until("the failure", lambda: _has(rig, "MailUnsent", "Warning"))
    shown = await trio.to_thread.run_sync(run_warm, "status", "--dir", rig.layout.root)
    assert f"mail server 127.0.0.1:{port}: Connection refused; next attempt in" in shown.stdout
    assert "Connection refused" in await siterig(rig, "alert", "show")
    await rig.supervisor.start_role(name="agent")
    await rig.vault.create_point(vm=VM, kind="CrashConsistent", name="while mail waits")
    await until("the end of the event", lambda: _has(rig, "RpoAboveThreshold", "OK"))


async def _has(rig: Testbed, code: str, severity: str, count: int = 1) -> bool:
    with suppress(RigError):  # the vault is being started
        return (await codes(rig))[code, severity] >= count
    return False


async def each_mail_arrives_once_after_a_kill(rig: Testbed, server: MailServerState) -> None:
    await rig.supervisor.kill_role(name="vault")  # mails wait in its database
    for subject in (RPO_MAIL, "[siterig] Warning: RoleHeld"):
        await until(f"the mail {subject}", partial(_arrived, server, subject, 1))
    assert all(receivers == [TO, OWNER] for receivers, _ in server.mails)
    mail = next(mail for mail in (parsed(each) for _, each in server.mails) if mail["Subject"] == RPO_MAIL)
    assert (mail["To"], mail["Content-Language"]) == (f"{TO}, {OWNER}", "en")
    assert "the RPO of VM 'web01' is over 60 s" in mail.get_content()
    assert set(_arrivals(server).values()) == {1}
    await until("the end of the failure", lambda: _has(rig, "MailSentAgain", "OK"))


async def a_kill_before_the_note_of_a_delivery_repeats_the_same_mail(
    rig: Testbed, clock: RigClockControl, server: MailServerState
) -> None:
    """The server has taken the mail when the vault is killed: that mail is repeated once, and no other one."""
    pid = next(role.pid for role in (await rig.supervisor.status()).roles if role.name == "vault")
    assert pid is not None
    killed: list[str] = []

    def kill(mail: bytes) -> None:
        if not killed:
            killed.append(str(parsed(mail)["Message-ID"]))
            os.kill(pid, signal.SIGKILL)

    server.on_mail = kill
    server.refused = {OWNER: "550 no such user"}
    await rig.supervisor.kill_role(name="agent", hold=True)
    await clock.advance(int(mail_queue.QUIET_S * SECOND_NS) + MINUTE_NS)
    await until("the event", lambda: _has(rig, "RpoAboveThreshold", "Warning", 2))
    await clock.advance(int(mail_queue.QUIET_S * SECOND_NS))
    await until("the mail", lambda: _arrived(server, RPO_MAIL, 2))
    await until("the repetition", lambda: _repeated(server, killed))
    await until("the named loss", lambda: _has(rig, "MailRefused", "Warning"))
    (refusal, *_) = [event for event in await rig.vault.events() if event.eventCode == "MailRefused"]
    assert refusal.description == f"the mail server refuses mail to {OWNER}: 550 no such user"
    repeated = [mail for _, mail in server.mails if str(parsed(mail)["Message-ID"]) == killed[0]]
    assert (len(repeated), len(set(repeated))) == (2, 1)
    assert {count for (_, name), count in _arrivals(server).items() if name != killed[0]} == {1}


async def _repeated(server: MailServerState, killed: list[str]) -> bool:
    return bool(killed) and max(_arrivals(server).values()) == 2


def _arrivals(server: MailServerState) -> Counter[tuple[str, str]]:
    """Return how often each mail arrived, by subject and Message-ID."""
    mails = [parsed(mail) for _, mail in server.mails]
    return Counter((str(mail["Subject"]), str(mail["Message-ID"])) for mail in mails)


async def _arrived(server: MailServerState, subject: str, count: int) -> bool:
    return len([name for found, name in _arrivals(server) if found == subject]) >= count


async def mail_into_a_folder(rig: Testbed, clock: RigClockControl, folder: Path) -> None:
    await siterig(rig, "alert", "set", "--folder", folder, "--no-send-to-owners")
    await rig.supervisor.start_role(name="agent")
    await until("the end of the event", lambda: _has(rig, "RpoAboveThreshold", "OK", 2))
    await rig.supervisor.kill_role(name="agent", hold=True)
    for minutes in (2, 6):
        await clock.advance(minutes * MINUTE_NS)

    async def is_written() -> bool:
        return any(mail["Subject"] == RPO_MAIL for mail in _files(folder))

    await until("the file", is_written)
    assert {mail["To"] for mail in _files(folder)} == {TO}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    ids = [mail["Message-ID"] for mail in _files(folder)]
    assert len(ids) == len(set(ids))


def _files(folder: Path) -> list[EmailMessage]:
    return [parsed(path.read_bytes()) for path in folder.glob("*.eml")]
