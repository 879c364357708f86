"""TAG records of a change log: the marks of cuts, with names and positions."""

from __future__ import annotations

from pydantic import Field, ValidationError

from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.files.checked_document import validation_problem


class TagSeen(WireModel):
    """A TAG record of a change log."""

    tag_id: str
    kind: TagKind
    name: str
    position: int = Field(ge=0, lt=1 << 63)
    time_ns: int = Field(ge=0, lt=1 << 63)


def encode_tag(tag: TagSeen) -> bytes:
    """Return the payload of a TAG record."""
    return tag.model_dump_json().encode()


def decode_tag(payload: bytes) -> TagSeen:
    """Return the tag in a TAG record's payload.

    Raises:
        RigError: ``LogCorrupt`` if the payload is no tag.
    """
    try:
        return TagSeen.model_validate_json(payload, strict=True)
    except ValidationError as exc:
        raise RigError(Code.LogCorrupt, f"TAG record: {validation_problem(exc)}") from exc
