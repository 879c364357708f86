"""Small JSON documents with a format version and a CRC32C: the state of a disk, a mounted point, a managed disk.

Fault contract: a document is replaced atomically and durably, so a kill or a power loss leaves the old document or the new
one.  A changed byte raises :class:`CorruptDocumentError`, an unknown format version :class:`UnknownFormatError`.  Neither
names the file; the caller adds the name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from siterig.blockfs.files.durable_io import write_atomically
from siterig.cext.checksums import crc32c


class CorruptDocumentError(ValueError):
    """A document is corrupt; the text names the problem."""


class UnknownFormatError(ValueError):
    """A document has a format version that this program does not read; the text names it and the versions that it reads."""

    def __init__(self, version: object, known: tuple[int, ...]) -> None:
        """Name the version.

        Args:
            version: value of the key ``format``; any JSON value.
            known: versions that the program reads, without a gap.
        """
        these = str(known[0]) if len(known) == 1 else f"{min(known)} to {max(known)}"
        super().__init__(f"format {version!r:.50}; this siterig reads {these}")


@dataclass(frozen=True, slots=True)
class CheckedDocument:
    """One kind of document: its layout and its format versions.

    There are two layouts.  With ``body_key`` the body is one value: ``{"format": 3, "crc32c": 1234, "disk": {...}}``, and
    the checksum is a number over the body.  Without it the body's keys are on the level of ``format`` and ``crc32c``, and
    the checksum is eight hexadecimal digits over all other keys.  Both checksums are the CRC32C of the JSON text with sorted
    keys.
    """

    newest_format: int
    """The version that is written."""
    old_formats: tuple[int, ...] = ()
    """Older versions that are read, ascending."""
    body_key: str | None = None
    ends_with_newline: bool = True

    def save(self, path: Path, body: dict[str, Any]) -> None:
        """Replace the file durably by a document with this body."""
        write_atomically(path, self.encode(body))

    def encode(self, body: dict[str, Any]) -> bytes:
        """Return the bytes of a document with this body."""
        if self.body_key is None:
            fields = {"format": self.newest_format, **body}
            text = json.dumps({**fields, "crc32c": f"{_checksum(fields):08x}"}, sort_keys=True, indent=1)
        else:
            text = json.dumps({"format": self.newest_format, "crc32c": _checksum(body), self.body_key: body})
        return text.encode() + (b"\n" if self.ends_with_newline else b"")

    def decode(self, data: bytes) -> tuple[int, Any]:
        """Check a document.

        Returns:
            Its format version and its body: a dict without ``body_key``, any JSON value with it.
        Raises:
            CorruptDocumentError: the document is damaged.
            UnknownFormatError: it is of another format version.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise CorruptDocumentError("is not JSON") from exc
        if not isinstance(fields, dict):
            raise CorruptDocumentError("is not a JSON object")
        return self._decode_flat(fields) if self.body_key is None else self._decode_nested(fields, self.body_key)

    def _decode_flat(self, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        checksum, expected = fields.pop("crc32c", None), f"{_checksum(fields):08x}"
        if checksum != expected:
            raise CorruptDocumentError(f"checksum is {checksum!r:.50}; the content's is {expected!r}")
        return self._known_format(fields.pop("format", None)), fields

    def _decode_nested(self, fields: dict[str, Any], body_key: str) -> tuple[int, Any]:
        for key in ("format", "crc32c", body_key):
            if key not in fields:
                raise CorruptDocumentError(f"has no key {key!r}")
        version = self._known_format(fields["format"])
        checksum, body = fields["crc32c"], fields[body_key]
        if type(checksum) is not int or checksum != _checksum(body) or len(fields) != 3:
            raise CorruptDocumentError("checksum does not match")
        return version, body

    def _known_format(self, version: object) -> int:
        known = (*self.old_formats, self.newest_format)
        if type(version) is not int or version not in known:
            raise UnknownFormatError(version, known)
        return version


def validation_problem(error: ValidationError) -> str:
    """Return the first problem of a model's validation in one line: the key, then what is wrong with it."""
    first = error.errors()[0]
    key = ".".join(map(repr, first["loc"]))[:100]  # an unknown key can have any length
    return f"{key}: {first['msg']!r:.200}"


def _checksum(body: object) -> int:
    return crc32c(json.dumps(body, sort_keys=True).encode())
