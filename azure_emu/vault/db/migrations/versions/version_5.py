"""Schema version 5: the rig's clock decides instead of wall time; the JSON keys of job results; sector sizes of disks."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

from siterig.blockfs.core.clock_reading import BETWEEN_BOOTS_NS_MAX

revision = "5"
down_revision = None

_VM_KEYS = {"name": "vm", "fabric": "side"}
_POINT_KEYS = {"recoveryPointType": "type", "recoveryPointTime": "time", "downgradedBecause": "downgraded_because"}


def upgrade() -> None:
    """Change the database from version 4 to version 5."""
    _rename_keys_of_job_results()
    _add_rig_clock()
    _place_points()
    _add_failover_position()
    _restart_health_windows()
    _add_sector_sizes()


def _rename_keys_of_job_results() -> None:
    """``result_vm`` and ``result_point`` are JSON objects, whose keys have the names of api.Vm and api.RecoveryPoint."""
    connection = op.get_bind()
    for row_id, vm, point in connection.execute(sa.text("SELECT id, result_vm, result_point FROM job")).all():
        renamed = {"id": row_id, "vm": _renamed(vm, _VM_KEYS), "point": _renamed(point, _POINT_KEYS)}
        connection.execute(sa.text("UPDATE job SET result_vm = :vm, result_point = :point WHERE id = :id"), renamed)


def _renamed(value: str | None, keys: dict[str, str]) -> str | None:
    found: dict[str, Any] | None = None if value is None else json.loads(value)
    return value if found is None else json.dumps({keys.get(key, key): item for key, item in found.items()})


def _add_rig_clock() -> None:
    op.create_table(
        "rig_clock",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("elapsed_ns", sa.BigInteger, nullable=False),
        sa.Column("boot_id", sa.String, nullable=False),
        sa.Column("boottime_ns", sa.BigInteger, nullable=False),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
    )


def _place_points() -> None:
    """The newest point of a VM is at 0, where the rig's clock begins; the others before it, as their times say.

    The times are wall time, so of a gap at most one hour counts: a point may seem younger than it is, but never older.
    """
    with op.batch_alter_table("point") as batch:
        batch.add_column(sa.Column("elapsed_ns", sa.BigInteger, nullable=False, server_default="0"))
    point = sa.table(
        "point", sa.column("tag_id"), sa.column("vm"), sa.column("position"), sa.column("time_ns"), sa.column("elapsed_ns")
    )
    query = sa.select(point.c.vm, point.c.tag_id, point.c.time_ns).order_by(point.c.vm, point.c.position.desc())
    connection = op.get_bind()
    for _vm, newest_first in groupby(connection.execute(query).all(), key=lambda row: row.vm):
        elapsed_ns, later_ns = 0, None
        for row in newest_first:
            if later_ns is not None:
                elapsed_ns -= min(max(0, later_ns - row.time_ns), BETWEEN_BOOTS_NS_MAX)
            later_ns = row.time_ns
            connection.execute(sa.update(point).where(point.c.tag_id == row.tag_id).values(elapsed_ns=elapsed_ns))
    with op.batch_alter_table("point") as batch:
        batch.alter_column("elapsed_ns", server_default=None)


def _add_failover_position() -> None:
    """Unknown for a VM that is failed over now: a failback then keeps its old disks, whatever was written to them."""
    with op.batch_alter_table("item") as batch:
        batch.add_column(sa.Column("failover_position", sa.BigInteger))


def _restart_health_windows() -> None:
    """Cycles are counted, and the RPO is measured, from the migration on."""
    with op.batch_alter_table("item") as batch:
        batch.add_column(sa.Column("sent_elapsed_ns", sa.BigInteger))
        batch.add_column(sa.Column("protected_since_elapsed_ns", sa.BigInteger))
    item = sa.table(
        "item", *map(sa.column, ("sent_time_ns", "sent_elapsed_ns", "protected_since_ns", "protected_since_elapsed_ns"))
    )
    op.execute(sa.update(item).where(item.c.sent_time_ns.is_not(None)).values(sent_elapsed_ns=0))
    op.execute(sa.update(item).where(item.c.protected_since_ns.is_not(None)).values(protected_since_elapsed_ns=0))
    op.execute(sa.delete(sa.table("cycle")))
    with op.batch_alter_table("item") as batch:
        batch.drop_column("protected_since_ns")
    with op.batch_alter_table("cycle") as batch:
        batch.add_column(sa.Column("elapsed_ns", sa.BigInteger, nullable=False))
        batch.drop_column("at_ns")


def _add_sector_sizes() -> None:
    """All disks had sectors of 512 bytes."""
    for table in ("disk", "known_disk"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("sector_bytes", sa.Integer, nullable=False, server_default="512"))
        with op.batch_alter_table(table) as batch:
            batch.alter_column("sector_bytes", server_default=None)
