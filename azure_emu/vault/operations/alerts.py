"""The operations on the alert settings."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.alerts import alert_settings, mail_queue
from siterig.azure_emu.vault.alerts.mail_password import MailPassword, read_password
from siterig.azure_emu.vault.alerts.mail_worker import MailWorker
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.model.alert_api import AlertApi, AlertSettings, AlertState
from siterig.blockfs.core.clock import rfc3339_or_none


class AlertOperations(AlertApi):
    """The alert settings of one vault."""

    def __init__(self, context: VaultContext, password: MailPassword, worker: MailWorker) -> None:
        self._context = context
        self._password = password
        self._worker = worker

    async def alerts(self) -> AlertState:
        return await self._context.database.transact(_state)

    async def configure_alerts(self, *, settings: AlertSettings, password_file: str | None = None) -> AlertState:
        alert_settings.check(settings)
        user = None if settings.server is None else settings.server.user
        if password_file is not None:
            if user is None:
                raise alert_settings.invalid("password_file", repr(password_file), "a file only for a server with a user")
            self._password.store(read_password(Path(password_file)))
        elif user is not None and not self._password.exists:
            raise alert_settings.invalid("server.user", repr(user), "a user only with a file of its password")

        def change(session: Session) -> AlertState:
            row = alert_settings.row_of(session)
            if not AlertSettings.model_validate(row.settings).is_on:
                mail_queue.skip_events(session)  # mail begins with the events from now on
            row.settings = settings.model_dump()
            if not settings.is_on:
                row.problem, row.problem_since_ns = None, None
                mail_queue.delete_waiting(session)
            return _state(session)

        state = await self._context.database.transact(change)
        if user is None:
            self._password.forget()
        self._worker.begin_again()
        return state


def _state(session: Session) -> AlertState:
    row = alert_settings.row_of(session)
    return AlertState(
        settings=AlertSettings.model_validate(row.settings),
        waiting=mail_queue.waiting(session),
        problem=row.problem,
        problem_since=rfc3339_or_none(row.problem_since_ns),
        delivered=rfc3339_or_none(row.delivered_ns),
        dropped=row.dropped,
    )
