"""Reasons for bad health that a user acknowledged.

An acknowledged reason is hidden as long as it lasts, and does not count for ``replicationHealth``.  When it has ended, the
acknowledgement is deleted: a reason that occurs again, or that becomes critical, is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import AcknowledgedRow
from siterig.azure_emu.vault.model.resources import HealthError

SOURCE_USE = "source-use"
"""The id of the reason that the watch of the source's disks observes; it is recorded nowhere."""

ReasonKey = tuple[str, str, bool]
"""Id and code of a reason, and whether it is recoverable."""
_KEYS = select(*(AcknowledgedRow.__table__.c[name] for name in ("vm", "error_id", "code", "recoverable")))


def _key(error: HealthError) -> ReasonKey:
    return error.errorId, error.errorCode, error.recoverable


def _rows(session: Session, vm: str) -> dict[ReasonKey, AcknowledgedRow]:
    rows = session.scalars(select(AcknowledgedRow).where(AcknowledgedRow.vm == vm))
    return {(row.error_id, row.code, row.recoverable): row for row in rows}


def of_all(session: Session) -> dict[str, frozenset[ReasonKey]]:
    """Return the acknowledged reasons of each VM that has some."""
    found: dict[str, set[ReasonKey]] = {}
    for vm, error_id, code, recoverable in session.execute(_KEYS):
        found.setdefault(vm, set()).add((error_id, code, recoverable))
    return {vm: frozenset(keys) for vm, keys in found.items()}


def split(errors: Iterable[HealthError], known: Set[ReasonKey]) -> tuple[list[HealthError], list[HealthError]]:
    """Return the reasons that count, and the acknowledged ones, which are ``known``."""
    shown: list[HealthError] = []
    hidden: list[HealthError] = []
    for error in errors:
        (hidden if _key(error) in known else shown).append(error)
    return shown, hidden


def add(session: Session, vm: str, errors: Iterable[HealthError], now_ns: int) -> None:
    """Acknowledge these reasons."""
    known = _rows(session, vm)
    for error in errors:
        if _key(error) not in known:
            session.add(
                AcknowledgedRow(
                    vm=vm, error_id=error.errorId, code=error.errorCode, recoverable=error.recoverable, at_ns=now_ns
                )
            )


def forget(session: Session, vm: str, error_id: str) -> None:
    """Delete the acknowledgements of a reason that has ended, or become another one."""
    session.execute(delete(AcknowledgedRow).where(AcknowledgedRow.vm == vm, AcknowledgedRow.error_id == error_id))


def forget_ended(session: Session, vm: str, errors: Iterable[HealthError]) -> None:
    """Delete the acknowledgements of all reasons but these; the source's use is not among them."""
    lasting = {_key(error) for error in errors}
    for key, row in _rows(session, vm).items():
        if key not in lasting and row.error_id != SOURCE_USE:
            session.delete(row)


def forget_source_use(session: Session, lasting: Collection[str]) -> None:
    """Delete the acknowledgements of the use of a source, but of these VMs."""
    ended = AcknowledgedRow.error_id == SOURCE_USE
    session.execute(delete(AcknowledgedRow).where(ended, AcknowledgedRow.vm.not_in(list(lasting))))


def vms_of_source_use(session: Session) -> set[str]:
    """Return the VMs whose source's use is acknowledged."""
    return set(session.scalars(select(AcknowledgedRow.vm).where(AcknowledgedRow.error_id == SOURCE_USE)))


def vms(session: Session) -> set[str]:
    """Return the VMs that have acknowledged reasons."""
    return set(session.scalars(select(AcknowledgedRow.vm)))
