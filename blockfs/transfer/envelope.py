"""The envelope of a part: the compressed segment, encrypted by AES-256-GCM (NIST SP 800-38D), as the blob holds it.

``docs/reference/formats/sealed-part.md`` describes the bytes.  The header and the name of the blob are authenticated: a blob
that is changed, or stored under another name, does not open.  No input is trusted.
"""

from __future__ import annotations

import secrets
import struct
import threading
import uuid
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import Buffer

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName

MAGIC = b"SRIGSEAL"
VERSION = 1
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_BYTES = 32
BUFFER_BYTES_MAX = 16 << 20
"""The largest buffer that a thread keeps; a usual part has 8 MiB."""
_HEADER = struct.Struct("<8sHH16s12s")
HEADER_BYTES = _HEADER.size
_kept = threading.local()
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
"""Bytes that an envelope adds to the compressed segment."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that encrypts data.

    Attributes:
        key_id: names the key; it is no secret.
        secret: the bytes of the key: 32 for parts (AES-256-GCM), 64 for a disk (AES-256-XTS); ``repr`` does not show them.
    """

    key_id: uuid.UUID
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls, secret_bytes: int = KEY_BYTES) -> DataKey:
        """Return a new random key."""
        return cls(uuid.uuid4(), secrets.token_bytes(secret_bytes))


def seal(key: DataKey, part: PartName, packed: Buffer) -> bytes:
    """Return the envelope of a compressed segment; each call draws a new nonce."""
    header = _HEADER.pack(MAGIC, VERSION, HEADER_BYTES, key.key_id.bytes, secrets.token_bytes(NONCE_BYTES))
    with memoryview(packed) as plain:
        size = HEADER_BYTES + plain.nbytes + TAG_BYTES
        with memoryview(_buffer(size))[:size] as view:
            view[:HEADER_BYTES] = header
            AESGCM(key.secret).encrypt_into(header[-NONCE_BYTES:], plain, _associated(header, part), view[HEADER_BYTES:])
            return bytes(view)


def _buffer(size: int) -> bytearray:
    """Return a buffer of this thread: fresh memory for each part costs more than its encryption, by page faults."""
    if size > BUFFER_BYTES_MAX:
        return bytearray(size)
    kept: bytearray = getattr(_kept, "buffer", bytearray())
    if len(kept) < size:
        kept = _kept.buffer = bytearray(size)
    return kept


def key_id_of(part: PartName, blob: Buffer) -> uuid.UUID:
    """Return the id of the key that a blob names; the answer is not authenticated.

    Raises:
        RigError: ``PartCorrupt`` if the blob is no envelope of this version.
    """
    with memoryview(blob) as view:
        if view.nbytes < HEADER_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
            raise _bad(part, "is not encrypted: it does not begin with the header of an envelope")
        _, version, header_bytes, key_id, _ = _HEADER.unpack_from(view)
        if (version, header_bytes) != (VERSION, HEADER_BYTES):
            raise _bad(
                part,
                f"has an envelope of version {version} with a header of {header_bytes} bytes; "
                f"this program reads version {VERSION} with {HEADER_BYTES}",
            )
        if view.nbytes < OVERHEAD_BYTES:
            raise _bad(part, f"has an envelope of {view.nbytes} bytes; the shortest has {OVERHEAD_BYTES}")
    return uuid.UUID(bytes=key_id)


def open_sealed(key: DataKey, part: PartName, blob: Buffer) -> bytes:
    """Return the compressed segment in an envelope.

    Raises:
        RigError: ``PartCorrupt`` if the blob is no envelope, or was sealed with another key or for another name, or if a
            byte of it has changed.
    """
    named = key_id_of(part, blob)
    if named != key.key_id:
        raise _bad(part, f"is encrypted with key {named}; the key of this disk and generation is {key.key_id}")
    with memoryview(blob) as view:
        header = bytes(view[:HEADER_BYTES])
        try:
            return AESGCM(key.secret).decrypt(header[-NONCE_BYTES:], view[HEADER_BYTES:], _associated(header, part))
        except InvalidTag:
            raise _bad(
                part, f"does not open with key {key.key_id}: its bytes have changed, or it was encrypted for another name"
            ) from None


def _associated(header: bytes, part: PartName) -> bytes:
    return header + part.blob().encode()


def _bad(part: PartName, why: str) -> RigError:
    return RigError(Code.PartCorrupt, f"part {part.blob()}: {why}")
