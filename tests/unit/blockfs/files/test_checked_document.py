"""Checked documents: their bytes on disk are fixed, each changed byte is found, and other versions are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from siterig.blockfs.files.checked_document import CheckedDocument, CorruptDocumentError, UnknownFormatError

NESTED = CheckedDocument(3, (1, 2), body_key="disk", ends_with_newline=False)
FLAT = CheckedDocument(2)
BODY: dict[str, Any] = {"name": "os", "size": 512, "parent": None}


def test_both_layouts_have_the_bytes_that_the_format_pages_show() -> None:
    assert NESTED.encode(BODY) == (
        b'{"format": 3, "crc32c": 3101228647, "disk": {"name": "os", "size": 512, "parent": null}}'
    )
    assert FLAT.encode(BODY) == (
        b'{\n "crc32c": "4f1f88de",\n "format": 2,\n "name": "os",\n "parent": null,\n "size": 512\n}\n'
    )


@pytest.mark.parametrize("document", [NESTED, FLAT])
def test_an_encoded_document_decodes_to_the_same_document(document: CheckedDocument) -> None:
    assert document.decode(document.encode(BODY)) == (document.newest_format, BODY)


@pytest.mark.parametrize("document", [CheckedDocument(3, body_key="disk"), FLAT])
def test_a_changed_byte_is_found(document: CheckedDocument) -> None:
    good = document.encode(BODY)
    for at in range(len(good)):
        if not good[at : at + 1].isspace():
            bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
            with pytest.raises((CorruptDocumentError, UnknownFormatError)):
                document.decode(bad)


@pytest.mark.parametrize(
    ("document", "data", "problem"),
    [
        (NESTED, b"{", "is not JSON"),
        (FLAT, b"[" * 100_000, "is not JSON"),
        (NESTED, b"[]", "is not a JSON object"),
        (NESTED, b'{"format": 3, "crc32c": 0}', "has no key 'disk'"),
        (NESTED, b'{"format": 3, "crc32c": true, "disk": 1}', "checksum does not match"),
        (FLAT, b'{"format": 2}', "checksum is None; the content's is '8097e52c'"),
    ],
)
def test_damage_is_named(document: CheckedDocument, data: bytes, problem: str) -> None:
    with pytest.raises(CorruptDocumentError) as caught:
        document.decode(data)
    assert str(caught.value) == problem


def test_an_additional_key_is_damage() -> None:
    fields = json.loads(NESTED.encode(BODY)) | {"more": 1}
    with pytest.raises(CorruptDocumentError, match="checksum does not match"):
        NESTED.decode(json.dumps(fields).encode())


def test_old_formats_are_read_and_unknown_formats_are_named() -> None:
    fields = json.loads(NESTED.encode(BODY))
    assert NESTED.decode(json.dumps(fields | {"format": 1}).encode()) == (1, BODY)
    for version, shown in ((4, "4"), (0, "0"), ("3", "'3'"), (True, "True"), (3.0, "3.0")):
        with pytest.raises(UnknownFormatError, match=f"^format {shown}; this siterig reads 1 to 3$"):
            NESTED.decode(json.dumps(fields | {"format": version}).encode())
    other = CheckedDocument(5).encode(BODY)
    with pytest.raises(UnknownFormatError, match=r"^format 5; this siterig reads 2$"):
        FLAT.decode(other)
