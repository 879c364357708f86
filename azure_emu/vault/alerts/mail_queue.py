"""The queue of mails in the vault's database.

Fault contract: the event that was read last and the mails about events are changed in one transaction, so a kill neither
loses an alert nor repeats one.  A mail is closed, with all that will be in it, before it is sent, and is marked after it was
delivered: a kill between the two sends the same mail again, with the same ``Message-ID``.

A burst is bounded: the events of one topic share a mail until it is sent, which lists the first ``LISTED_MAX`` of them, and
the next mail of the topic is sent ``QUIET_S`` later at the earliest.  Times are those of the rig's clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.alerts import alert_rules, alert_settings
from siterig.azure_emu.vault.alerts.mail_text import Alert, MailContent
from siterig.azure_emu.vault.db.schema import EventRow, MailRow
from siterig.blockfs.core.clock_reading import SECOND_NS

LISTED_MAX = 20
GATHER_S = 5.0
"""The time for which an alert waits for others, before the first mail of a topic."""
QUIET_S = 300.0
QUEUE_MAX = 200
EXPIRES_S = 5 * 86400.0
"""RFC 5321, 4.5.4.1: a mail is tried for at least 4 to 5 days."""
_EVENTS_READ = 500
_DELAYS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0)


def delay_s(attempts: int) -> float:
    """Return the delay after this many failures in a row, at least 1."""
    return _DELAYS_S[min(attempts, len(_DELAYS_S)) - 1]


@dataclass(frozen=True, slots=True)
class ClosedMail:
    """A mail that is due: its number, its contents, and the receivers that do not have it yet."""

    number: int
    content: MailContent
    receivers: list[str]


def skip_events(session: Session) -> None:
    """Let all events up to now have no mail."""
    alert_settings.row_of(session).last_event_id = session.scalars(select(func.max(EventRow.id))).one() or 0


def collect(session: Session, elapsed_ns: int, now_ns: int) -> None:
    """Put the events since the last call into mails; ``elapsed_ns``: the rig's clock, ``now_ns``: the wall time."""
    settings = alert_settings.row_of(session)
    while True:
        query = select(EventRow).where(EventRow.id > settings.last_event_id, EventRow.severity != "OK")
        events = session.scalars(query.order_by(EventRow.id).limit(_EVENTS_READ)).all()
        for event in events:
            topic = alert_rules.topic_of(event)
            if topic is not None and not _add(session, topic, event, elapsed_ns, now_ns):
                settings.dropped += 1
        if len(events) < _EVENTS_READ:
            break
        settings.last_event_id = events[-1].id
    skip_events(session)


def _add(session: Session, topic: str, event: EventRow, elapsed_ns: int, now_ns: int) -> bool:
    """Put an event into the open mail of a topic, or into a new one; return False if the queue is full."""
    alert = Alert(
        at_ns=event.at_ns, code=event.code, severity=event.severity, subject=event.affected_object, text=event.description
    )
    of_topic = session.scalars(select(MailRow).where(MailRow.topic == topic)).all()
    row = next((each for each in of_topic if each.receivers is None), None)
    if row is not None:
        row.alert_count += 1
        if len(row.alerts) < LISTED_MAX:
            row.alerts = [*row.alerts, alert.to_json()]
        return True
    if waiting(session) >= QUEUE_MAX:
        return False
    earlier_ns = [each.due_elapsed_ns if each.sent_elapsed_ns is None else each.sent_elapsed_ns for each in of_topic]
    due_ns = max([elapsed_ns + int(GATHER_S * SECOND_NS), *(at + int(QUIET_S * SECOND_NS) for at in earlier_ns)])
    session.add(
        MailRow(
            message_id=str(uuid.uuid4()),
            topic=topic,
            alerts=[alert.to_json()],
            alert_count=1,
            created_ns=now_ns,
            expires_elapsed_ns=elapsed_ns + int(EXPIRES_S * SECOND_NS),
            due_elapsed_ns=due_ns,
            attempts=0,
            receivers=None,
            sent_elapsed_ns=None,
        )
    )
    session.flush()
    return True


def waiting(session: Session) -> int:
    """Return the number of mails that are not delivered."""
    return session.scalars(select(func.count()).select_from(MailRow).where(MailRow.sent_elapsed_ns.is_(None))).one()


def close_next(session: Session, elapsed_ns: int, receivers: Sequence[str]) -> ClosedMail | None:
    """Return the oldest mail that is due, and close it: later events of its topic get another mail; None: none is due."""
    query = select(MailRow).where(MailRow.sent_elapsed_ns.is_(None), MailRow.due_elapsed_ns <= elapsed_ns)
    row = session.scalars(query.order_by(MailRow.due_elapsed_ns, MailRow.id).limit(1)).first()
    if row is None:
        return None
    if row.receivers is None:
        row.receivers = list(receivers)
    alerts = [Alert.of_json(each) for each in row.alerts]
    content = MailContent(row.message_id, row.topic, alerts, row.alert_count, row.created_ns)
    return ClosedMail(row.id, content, list(row.receivers))


def next_due_s(session: Session, elapsed_ns: int) -> float | None:
    """Return the seconds until a mail is due; None if none waits."""
    query = select(func.min(MailRow.due_elapsed_ns)).where(MailRow.sent_elapsed_ns.is_(None))
    due_ns = session.scalars(query).one()
    return None if due_ns is None else max(0.0, (due_ns - elapsed_ns) / SECOND_NS)


def delivered(session: Session, number: int, elapsed_ns: int) -> None:
    """Mark a mail as delivered; it is kept until the next one of its topic may be sent."""
    row = session.get(MailRow, number)
    if row is not None:
        row.sent_elapsed_ns = elapsed_ns
    outdated_ns = elapsed_ns - int(QUIET_S * SECOND_NS)
    session.execute(delete(MailRow).where(MailRow.sent_elapsed_ns.is_not(None), MailRow.sent_elapsed_ns < outdated_ns))


def postpone(session: Session, number: int, elapsed_ns: int, receivers: Sequence[str]) -> bool:
    """Try a mail again later, for these receivers; return False, and delete it, if it has been tried for too long."""
    row = session.get(MailRow, number)
    if row is None:
        return True
    row.attempts += 1
    row.receivers = list(receivers)
    row.due_elapsed_ns = elapsed_ns + int(delay_s(row.attempts) * SECOND_NS)
    if row.due_elapsed_ns <= row.expires_elapsed_ns:
        return True
    session.delete(row)
    return False


def delete_waiting(session: Session) -> None:
    """Delete the mails that are not delivered."""
    session.execute(delete(MailRow).where(MailRow.sent_elapsed_ns.is_(None)))
