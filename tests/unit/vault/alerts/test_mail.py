"""Mail about alerts: the events that are mailed, the text, and the queue over failures and kills."""

from __future__ import annotations

import email
import email.policy
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.alerts import mail_delivery, mail_queue
from siterig.azure_emu.vault.alerts.mail_text import SUBJECT_CHARS_MAX, Alert, MailContent
from siterig.azure_emu.vault.context.events import EventType, Severity, record
from siterig.azure_emu.vault.model.alert_api import AlertSettings, MailServer
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.mail_server import mail_server
from tests.support.rigs.vault_fakes import START_NS, running

GATHERED_S = mail_queue.GATHER_S + 1
TO = "dr@example.com"


def parsed(mail: bytes) -> EmailMessage:
    found = email.message_from_bytes(mail, policy=email.policy.SMTP)
    assert not found.defects
    assert mail.isascii()
    assert b"\n" not in mail.replace(b"\r\n", b"")
    return found


async def happens(
    vault: Vault, code: str, severity: Severity = "Critical", *, vm: str = "web01", kind: EventType = "VmHealth"
) -> None:
    def note(session: object) -> None:
        record(session, vm=vm, code=code, kind=kind, severity=severity, text="why", now_ns=vault.context.clock.wall_ns())  # type: ignore[arg-type]

    await vault.context.database.transact(note)


async def passes(world: World, vault: Vault, seconds: float = GATHERED_S) -> None:
    """Let time pass, and let the worker make a round."""
    await vault.mail.round()
    world.clock.advance_ns(int(seconds * SECOND_NS))
    await vault.mail.round()


def files(folder: Path) -> list[EmailMessage]:
    return [parsed(path.read_bytes()) for path in sorted(folder.glob("*.eml"))]


@asynccontextmanager
async def mailing(tmp_path: Path, **settings: object) -> AsyncIterator[tuple[World, Vault, Path]]:
    """Run a vault that writes mail into a folder."""
    folder = tmp_path / "mail"
    folder.mkdir(exist_ok=True)
    world = World()
    async with running(world, tmp_path) as vault:
        values = {"customEmailAddresses": [TO], "folder": str(folder), **settings}
        await vault.alerts.configure_alerts(settings=AlertSettings.model_validate(values))
        yield world, vault, folder


async def test_the_events_of_the_service_are_mailed_and_no_others(tmp_path: Path) -> None:
    async with mailing(tmp_path) as (world, vault, folder):
        await happens(vault, "ManagedDiskOlder", vm="critical")
        await happens(vault, "UnplannedFailoverFailed", vm="failover", kind="JobStatus")
        await happens(vault, "RpoAboveThreshold", "Warning", vm="late")
        await happens(vault, "RoleHung", "Warning", vm="heartbeat")
        await happens(vault, "RoleEnded", "Critical", vm="agent", kind="ServerHealth")
        for code, severity, kind in (
            ("CacheUnreachable", "Warning", "VmHealth"),
            ("RpoAboveThreshold", "OK", "VmHealth"),
            ("EnableDrFailed", "Critical", "JobStatus"),
            ("RoleEnded", "Warning", "ServerHealth"),
        ):
            await happens(vault, code, severity, vm="none", kind=kind)  # type: ignore[arg-type]
        await passes(world, vault)
        subjects = sorted(str(mail["Subject"]) for mail in files(folder))
        assert subjects == [
            "[siterig] Critical: ManagedDiskOlder of critical",
            "[siterig] Critical: RoleEnded (alerts: 2)",
            "[siterig] Critical: UnplannedFailoverFailed of failover",
            "[siterig] Warning: RpoAboveThreshold of late",
        ]
        (mail,) = [each for each in files(folder) if "RpoAbove" in str(each["Subject"])]
        assert (mail["To"], mail["From"], mail["Auto-Submitted"]) == (TO, "siterig@localhost", "auto-generated")
        assert "2027-01-15T08:00:00.000000Z  Warning  RpoAboveThreshold  late" in mail.get_content()
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_no_name_makes_a_header_or_ends_one() -> None:
    names = [
        "a\r\nBcc: x@y.z",
        "b\n\nbody",
        "ü" * 400,
        "\u202e",
        "\udcff",
        "=?utf-8?q?=0A?=",
        "x" * 5000,
        "\x00",
        "🙂 " * 90,
    ]
    for name in names:
        alert = Alert(START_NS, name, "Critical", name, f"{name}\n.\r\n{name}")
        content = MailContent("0" * 36, f"vm:{name}", [alert], 1, START_NS)
        mail = parsed(content.encode("siterig@localhost", [TO, "b@example.com"]))
        headers = "From To Subject Date Message-ID Auto-Submitted MIME-Version Content-Language Content-Type"
        assert sorted(mail.keys()) == sorted([*headers.split(), "Content-Transfer-Encoding"])
        assert (mail["To"], len(mail["Subject"]) <= SUBJECT_CHARS_MAX) == (f"{TO}, b@example.com", True)
        assert str(mail["Subject"]).isprintable()
        assert all(len(line) <= 998 for line in content.encode("siterig@localhost", [TO]).split(b"\r\n"))


async def test_a_burst_of_events_of_one_vm_is_two_mails(tmp_path: Path) -> None:
    async with mailing(tmp_path) as (world, vault, folder):
        for n in range(30):
            await happens(vault, f"Code{n}")
        await passes(world, vault)
        for n in range(30, 60):
            await happens(vault, f"Code{n}")
            if n % 10 == 0:
                await passes(world, vault, 1)
        assert [mail["Subject"] for mail in files(folder)] == ["[siterig] Critical: Code0 of web01 (alerts: 30)"]
        await passes(world, vault, mail_queue.QUIET_S)
        first, second = files(folder)
        assert first.get_content().count("Code") == mail_queue.LISTED_MAX
        assert f"Further alerts: {30 - mail_queue.LISTED_MAX}." in first.get_content()
        assert "Code30" in second.get_content()


async def test_a_restart_neither_loses_an_alert_nor_repeats_one(tmp_path: Path) -> None:
    async with mailing(tmp_path) as (world, vault, folder):
        await happens(vault, "First")
        await passes(world, vault)
        await happens(vault, "Second", vm="other")  # no round: it is in no mail yet
    async with running(World(), tmp_path) as vault:
        assert vault.context.clock.wall_ns() == START_NS
        world.clock = vault.context.clock  # type: ignore[assignment]
        await passes(world, vault)
        await passes(world, vault)
        assert sorted(str(mail["Subject"]) for mail in files(folder)) == [
            "[siterig] Critical: First of web01",
            "[siterig] Critical: Second of other",
        ]


async def test_a_mail_that_a_kill_repeats_is_the_same(tmp_path: Path) -> None:
    async with mailing(tmp_path) as (world, vault, folder):
        await happens(vault, "First")
        await vault.mail.round()
        world.clock.advance_ns(int(GATHERED_S * SECOND_NS))

        def close(session: object) -> mail_queue.ClosedMail | None:
            return mail_queue.close_next(session, int(GATHERED_S * SECOND_NS), [TO])  # type: ignore[arg-type]

        closed = await vault.context.database.transact(close)  # as if the process was killed right after the delivery
        assert closed is not None
        await happens(vault, "Later")
        await vault.mail.round()
        (mail,) = files(folder)
        assert (mail["Message-ID"], "Later" in mail.get_content()) == (
            f"<{closed.content.message_id}@siterig.invalid>",
            False,
        )


async def test_a_failing_server_is_a_wait_until_mail_is_sent_again(tmp_path: Path) -> None:
    world = World()
    with mail_server(tmp_path) as server:
        port = server.port
    async with running(world, tmp_path) as vault:
        settings = AlertSettings(customEmailAddresses=[TO], server=MailServer(host="127.0.0.1", port=port, security="none"))
        await vault.alerts.configure_alerts(settings=settings)
        await happens(vault, "First")
        await passes(world, vault)
        (wait,) = vault.context.waits.list()
        assert (wait.code, "127.0.0.1" in wait.reason, "next attempt in 15 s" in wait.reason) == ("MailUnsent", True, True)
        state = await vault.alerts.alerts()
        assert (state.waiting, state.delivered, state.problem is not None) == (1, None, True)
        with mail_server(tmp_path) as server:
            changed = settings.model_copy(update={"server": MailServer(host="127.0.0.1", port=server.port, security="none")})
            await vault.alerts.configure_alerts(settings=changed)
            await passes(world, vault, 0)
            assert [to for to, _ in server.mails] == [[TO]]
        assert vault.context.waits.list() == []
        state = await vault.alerts.alerts()
        assert (state.waiting, state.problem, state.delivered is not None) == (0, None, True)
        assert [event.eventCode for event in await vault.status.events()] == ["MailSentAgain", "MailUnsent", "First"]


async def test_receivers_that_a_server_puts_off_get_the_mail_later(tmp_path: Path) -> None:
    world = World()
    with mail_server(tmp_path) as server:
        async with running(world, tmp_path) as vault:
            receivers = ["a@example.com", "b@example.com", "c@example.com"]
            mail_by = MailServer(host="127.0.0.1", port=server.port, security="none")
            await vault.alerts.configure_alerts(settings=AlertSettings(customEmailAddresses=receivers, server=mail_by))
            server.refused = {"b@example.com": "451 later", "c@example.com": "550 no such user"}
            await happens(vault, "First")
            await passes(world, vault)
            server.refused = {}
            await passes(world, vault, mail_queue.delay_s(1))
            assert [to for to, _ in server.mails] == [["a@example.com"], ["b@example.com"]]
            assert len({parsed(mail)["Message-ID"] for _, mail in server.mails}) == 1
            (refusal,) = [event for event in await vault.status.events() if event.eventCode == "MailRefused"]
            assert refusal.description == "the mail server refuses mail to c@example.com: 550 no such user"
            server.data_answers = ["554 not this text"]
            await happens(vault, "Second", vm="other")
            await passes(world, vault)
            assert (await vault.alerts.alerts()).waiting == 0


async def test_mail_that_is_never_taken_expires(tmp_path: Path) -> None:
    world = World()
    with mail_server(tmp_path) as server:
        async with running(world, tmp_path) as vault:
            mail_by = MailServer(host="127.0.0.1", port=server.port, security="none")
            await vault.alerts.configure_alerts(settings=AlertSettings(customEmailAddresses=[TO], server=mail_by))
            server.refused = {TO: "451 later"}
            await happens(vault, "First")
            await passes(world, vault)
            await passes(world, vault, mail_queue.EXPIRES_S)
            assert (await vault.alerts.alerts()).waiting == 0
            assert "MailExpired" in [event.eventCode for event in await vault.status.events()]


def test_a_server_with_tls_takes_mail_and_no_error_has_the_password(tmp_path: Path) -> None:
    secret = secrets.token_hex()
    mail = MailContent("0" * 36, "vm:a", [Alert(0, "C", "Critical", "a", "t")], 1, 0).encode("siterig@localhost", [TO])
    with mail_server(tmp_path, starttls=True, user=("rig", secret)) as server:
        ca_file = str(server.ca_file)
        known = MailServer(host="127.0.0.1", port=server.port, security="starttls", user="rig", ca_file=ca_file)
        assert mail_delivery.send(known, secret, "siterig@localhost", [TO], mail) == mail_delivery.Delivered()
        assert [parsed(content)["Subject"] for _, content in server.mails] == ["[siterig] Critical: C of a"]
        unknown = known.model_copy(update={"ca_file": None})
        wrong = known.model_copy(update={"security": "tls"})
        for used, password in ((known, f"{secret}x"), (unknown, secret), (wrong, secret)):
            with pytest.raises(RigError) as caught:
                mail_delivery.send(used, password, "siterig@localhost", [TO], mail)
            assert (caught.value.code, secret in caught.value.message) == ("MailUnsent", False)
            assert "_ssl.c" not in caught.value.message
            assert caught.value.__context__ is None or secret not in str(caught.value.__context__)
        assert len(server.mails) == 1
    with mail_server(tmp_path, tls=True) as server:
        known = MailServer(host="127.0.0.1", port=server.port, security="tls", ca_file=str(server.ca_file))
        assert mail_delivery.send(known, None, "siterig@localhost", [TO], mail) == mail_delivery.Delivered()


async def test_a_full_queue_counts_the_alerts_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_queue, "QUEUE_MAX", 3)
    async with mailing(tmp_path) as (_, vault, _):
        for n in range(5):
            await happens(vault, "First", vm=f"vm{n}")
        await vault.mail.round()
        state = await vault.alerts.alerts()
        assert (state.waiting, state.dropped) == (3, 2)


async def test_mail_that_is_switched_on_does_not_repeat_the_past(tmp_path: Path) -> None:
    async with mailing(tmp_path) as (world, vault, folder):
        await happens(vault, "Waiting")
        await vault.mail.round()
        await vault.alerts.configure_alerts(settings=AlertSettings(customEmailAddresses=[TO]))
        assert (await vault.alerts.alerts()).waiting == 0
        await happens(vault, "WhileOff")
        await passes(world, vault)
        await vault.alerts.configure_alerts(settings=AlertSettings(customEmailAddresses=[TO], folder=str(folder)))
        await happens(vault, "Now")
        await passes(world, vault)
        assert [mail["Subject"] for mail in files(folder)] == ["[siterig] Critical: Now of web01"]


async def test_the_running_worker_mails_an_event_by_itself(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with mailing(tmp_path) as (world, vault, folder), trio.open_nursery() as nursery:
        nursery.start_soon(vault.send_mail)
        await trio.testing.wait_all_tasks_blocked()
        await happens(vault, "First")
        world.clock.advance_ns(int(GATHERED_S * SECOND_NS))
        await trio.sleep(GATHERED_S)
        await trio.testing.wait_all_tasks_blocked()
        world.clock.advance_ns(int(GATHERED_S * SECOND_NS))
        await trio.sleep(mail_queue.GATHER_S * 2)
        assert len(files(folder)) == 1
        nursery.cancel_scope.cancel()
