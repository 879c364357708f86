"""Models that cross a process boundary as JSON: unknown keys are errors, values do not change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number that a signed 64-bit field and a database can hold."""
UUID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


class WireModel(BaseModel):
    """Base of every model that is sent between roles or printed with ``--json``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, defer_build=True, serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
    )
