"""Schema version 5: the first that is made by a migration."""

from __future__ import annotations

import json
from typing import Any

from alembic import op
from sqlalchemy import text

revision = "5"
down_revision = None

_VM_KEYS = {"name": "vm", "fabric": "side"}
_POINT_KEYS = {"recoveryPointType": "type", "recoveryPointTime": "time", "downgradedBecause": "downgraded_because"}


def upgrade() -> None:
    """From version 4."""
    _rename_keys_of_job_results()


def _rename_keys_of_job_results() -> None:
    """``result_vm`` and ``result_point`` are JSON objects, whose keys have the names of api.Vm and api.RecoveryPoint."""
    connection = op.get_bind()
    for row_id, vm, point in connection.execute(text("SELECT id, result_vm, result_point FROM job")).all():
        renamed = {"id": row_id, "vm": _renamed(vm, _VM_KEYS), "point": _renamed(point, _POINT_KEYS)}
        connection.execute(text("UPDATE job SET result_vm = :vm, result_point = :point WHERE id = :id"), renamed)


def _renamed(value: str | None, keys: dict[str, str]) -> str | None:
    found: dict[str, Any] | None = None if value is None else json.loads(value)
    return value if found is None else json.dumps({keys.get(key, key): item for key, item in found.items()})
