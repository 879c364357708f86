"""Sends the mails of the queue, one at a time, in a thread; nothing in the vault waits for it.

A failure of the server is a wait of the vault, and delays all mails; a refusal of one mail delays only that one.  The result
of a delivery is recorded before the next one begins, and stays in memory while the database cannot take it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.moments import VaultMoment
from siterig.azure_emu.vault.alerts import alert_settings, mail_delivery, mail_queue
from siterig.azure_emu.vault.alerts.mail_delivery import Delivered
from siterig.azure_emu.vault.alerts.mail_password import MailPassword
from siterig.azure_emu.vault.alerts.mail_queue import ClosedMail
from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.rig_clock import RIG
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.model.alert_api import AlertSettings
from siterig.blockfs.core.errors import Code, RigError

DELIVERY_S = 120.0
"""The time for one mail; each step of it has a limit of its own."""
NET_S = 600.0
"""A round is made at least this often."""
DATABASE_RETRY_S = 30.0
UNSENT, SENT_AGAIN, REFUSED, EXPIRED = Code.MailUnsent, "MailSentAgain", "MailRefused", "MailExpired"
_PLACE = "mail"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    """The settings, and the mail that is to be sent with them; None: none is due within ``next_s``."""

    settings: AlertSettings
    mail: ClosedMail | None
    next_s: float | None


class MailWorker:
    """The mails of one vault."""

    def __init__(self, context: VaultContext, password: MailPassword) -> None:
        self._context = context
        self._password = password
        self._news = trio.Event()
        self._failures = 0
        self._retry_at_s = 0.0
        self._unrecorded: Callable[[Session], None] | None = None
        self._threads = trio.CapacityLimiter(2)  # one that does not end in time may be left, and ends by itself

    def note(self, moments: list[VaultMoment]) -> None:
        """Make a round soon if there may be events to mail."""
        if any(moment.name != events.POINT_CREATED for moment in moments):
            self._news.set()

    def begin_again(self) -> None:
        """Try at once, because the settings have changed."""
        self._failures, self._retry_at_s = 0, 0.0
        self._context.waits.clear(_PLACE)
        self._news.set()

    async def run(self) -> None:
        """Send mails until cancelled."""
        while True:
            self._news = trio.Event()
            try:
                wait_s = await self.round()
            except RigError as error:  # the host's disk is full: the health of the VMs shows that
                _log.warning("mail_delayed", code=error.code, reason=error.message)
                wait_s = DATABASE_RETRY_S
            with self._context.clock.move_on_after(wait_s):
                await self._news.wait()

    async def round(self) -> float:
        """Put new events into mails and send those that are due; return the seconds until the next round."""
        while True:
            await self._record()
            due = await self._context.database.transact(self._take)
            if due.mail is None:
                return NET_S if due.next_s is None else min(due.next_s, NET_S)
            await self._deliver(due.settings, due.mail)

    def _take(self, session: Session) -> _Due:
        settings = alert_settings.load(session)
        if not settings.is_on:
            return _Due(settings, None, None)
        elapsed_ns = rig_clock.elapsed_ns(session, self._context.clock)
        mail_queue.collect(session, elapsed_ns, self._context.clock.wall_ns())
        paused_s = self._retry_at_s - self._context.clock.trio_time_s()
        if self._failures and paused_s > 0:
            return _Due(settings, None, paused_s)
        mail = mail_queue.close_next(session, elapsed_ns, settings.receivers)
        return _Due(settings, mail, None if mail is not None else mail_queue.next_due_s(session, elapsed_ns))

    async def _deliver(self, settings: AlertSettings, mail: ClosedMail) -> None:
        try:
            work = self._work(settings, mail)
            result: Delivered | None = None
            with self._context.clock.real.move_on_after(DELIVERY_S):
                result = await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
            if result is None:
                raise mail_delivery.unsent(f"the mail was not taken within {DELIVERY_S:g} s")
        except RigError as error:
            self._failures += 1
            delay_s = mail_queue.delay_s(self._failures)
            self._retry_at_s = self._context.clock.trio_time_s() + delay_s
            text = f"{error.message}; next attempt in {delay_s:g} s"
            self._context.waits.set(_PLACE, UNSENT, text)
            _log.warning("mail_unsent", reason=error.message, attempt=self._failures, next_try_s=delay_s)
            self._unrecorded = partial(self._note_failure, error.message)
        else:
            self._failures = 0
            self._context.waits.clear(_PLACE)
            _log.info("mail_sent", topic=mail.content.topic, alerts=mail.content.count, again=len(result.again))
            self._unrecorded = partial(self._note_delivered, mail, result)
        await self._record()

    def _work(self, settings: AlertSettings, mail: ClosedMail) -> Callable[[], Delivered]:
        sender = alert_settings.sender_of(settings)
        encoded = mail.content.encode(sender, mail.receivers)
        if settings.server is None:
            return partial(mail_delivery.write_file, Path(settings.folder or ""), mail.content.file_name(), encoded)
        password = None if settings.server.user is None else self._password.load()
        return partial(mail_delivery.send, settings.server, password, sender, mail.receivers, encoded)

    async def _record(self) -> None:
        """Record the result of the last delivery; it is kept until the database takes it."""
        if self._unrecorded is not None:
            await self._context.database.transact(self._unrecorded)
            self._unrecorded = None

    def _note_failure(self, why: str, session: Session) -> None:
        row = alert_settings.row_of(session)
        if row.problem is None:
            row.problem_since_ns = self._context.clock.wall_ns()
            self._event(session, UNSENT, "Warning", f"mail about alerts waits: {why}")
        row.problem = why

    def _note_delivered(self, mail: ClosedMail, result: Delivered, session: Session) -> None:
        row = alert_settings.row_of(session)
        elapsed_ns = rig_clock.elapsed_ns(session, self._context.clock)
        if row.problem is not None:
            row.problem, row.problem_since_ns = None, None
            self._event(session, SENT_AGAIN, "OK", "mail about alerts is sent again")
        for receiver, why in result.refused.items():
            self._event(session, REFUSED, "Warning", f"the mail server refuses mail to {receiver}: {why}")
        if len(result.again) + len(result.refused) < len(mail.receivers):
            row.delivered_ns = self._context.clock.wall_ns()
        if not result.again:
            mail_queue.delivered(session, mail.number, elapsed_ns)
        elif not mail_queue.postpone(session, mail.number, elapsed_ns, result.again):
            self._event(session, EXPIRED, "Warning", f"a mail to {', '.join(result.again)} expired: {result.why}")

    def _event(self, session: Session, code: str, severity: events.Severity, text: str) -> None:
        now_ns = self._context.clock.wall_ns()
        events.record(session, vm=RIG, code=code, kind="ServerHealth", severity=severity, text=text, now_ns=now_ns)
