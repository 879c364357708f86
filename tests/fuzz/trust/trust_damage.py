"""Damaged files of trust: identities, the register of certificates, vault credentials files, the account of a user."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from siterig.azure_emu.authority.authority import Authority
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.trust.signing_requests import new_key
from tests.fuzz.damage import EDGES, Choices, damage_bytes
from tests.fuzz.small_damage import VALUES
from tests.fuzz.strict_log import crc32c

NO_JSON = [b"[" * 100_000, b'{"format":' * 50_000, b"9" * 5000, b"NaN", b"\xff", b""]
TEXTS = ["", "\x1b[2J", "x" * 2000, "\ud800", "-----BEGIN PRIVATE KEY-----\n", "\n"]


def _changed(pick: Choices, fields: dict[str, Any], *, most: int = 2) -> dict[str, Any]:
    """Change up to ``most`` values of an object in place."""
    changes: list[Callable[[], object]] = [
        lambda: fields.update({pick.of(sorted(fields)): pick.of([*VALUES, *EDGES, *TEXTS])}),
        lambda: fields.pop(pick.of(sorted(fields))),
        lambda: fields.update({pick.of(["more", "x" * 1500, "\x1b[2J"]): 1}),
    ]
    for _ in range(pick.below(most + 1)):
        if fields:
            pick.of(changes)()
    return fields


def _damaged(pick: Choices, raw: bytes) -> bytes:
    match pick.below(8):
        case 1 | 2:
            return damage_bytes(raw, pick)
        case 3:
            return pick.of(NO_JSON)
        case _:
            return raw


# --- identities -----------------------------------------------------------------------------------------------------


@cache
def identities() -> tuple[bytes, ...]:
    """Return good identities: their keys and certificates are new in each process."""
    with tempfile.TemporaryDirectory() as name:
        authority = Authority(Path(name), SYSTEM_CLOCK)
        return tuple(authority.issue_identity(role, "site") for role in ("host", "vault", "credentials"))


def blocks_of(raw: bytes) -> list[bytes]:
    """Return the PEM blocks of a good identity."""
    return [b"-----BEGIN" + block for block in raw.split(b"-----BEGIN")[1:]]


def identity(pick: Choices) -> bytes:
    """Return an identity, mostly damaged."""
    first, second = (blocks_of(pick.of(identities())) for _ in range(2))
    blocks = list(first)
    match pick.below(10):
        case 1:
            blocks[pick.below(3)] = pick.of(second)
        case 2:
            del blocks[pick.below(3)]
        case 3:
            blocks.insert(pick.below(4), pick.of(second))
        case 4:
            blocks = blocks * pick.of([2, 40])
        case 5:
            blocks[0] = blocks[0].replace(b"PRIVATE KEY", pick.of([b"ENCRYPTED PRIVATE KEY", b"EC PRIVATE KEY", b"A" * 900]))
        case 6:
            blocks.insert(
                pick.below(4), pick.of([b"text\n", b"\xff\x1b[2J", b"-----BEGIN CERTIFICATE-----\n", b"x" * 70_000])
            )
        case 7:
            blocks[0] = encrypted_key()
        case _:
            pass
    raw = b"".join(blocks)
    return damage_bytes(raw, pick) if pick.once_in(2) else raw


@cache
def encrypted_key() -> bytes:
    """Return a private key with a password, in blocks of the right name."""
    return new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"password"),
    )


# --- the register ---------------------------------------------------------------------------------------------------


def seal_register(certificates: object, *, version: object = 1, **more: object) -> bytes:
    """Return a ``register.json`` with the right checksum."""
    digest = hashlib.sha256(json.dumps(certificates, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": version, "sha256": digest, "certificates": certificates, **more}).encode()


def register(pick: Choices) -> bytes:
    """Return a ``register.json``, mostly damaged."""
    entries: list[Any] = [
        {
            "serial": f"{number * 77:x}",
            "role": pick.of(["host", "vault", "storage", "credentials"]),
            "name": "site",
            "issued_ns": number,
            "not_before_ns": 0,
            "not_after_ns": number + (1 << 60),
            "revoked_ns": pick.of([None, 5]),
            "reason": pick.of([None, "sent to all", "x" * 200]),
        }
        for number in range(1, 1 + pick.below(4))
    ]
    if entries:
        _changed(pick, pick.of(entries))
    if pick.once_in(8):
        entries.append(pick.of(VALUES))
    version = pick.of([*VALUES, *TEXTS]) if pick.once_in(8) else 1
    body = pick.of(VALUES) if pick.once_in(16) else entries
    return _damaged(pick, seal_register(body, version=version, **({"more": 1} if pick.once_in(16) else {})))


# --- vault credentials files ----------------------------------------------------------------------------------------


def credentials(pick: Choices) -> str:
    """Return the text of a vault credentials file, mostly damaged."""
    fields: dict[str, Any] = {
        "format": 1,
        "kind": "siterig vault credentials",
        "site": "site",
        "expires": "2030-01-01T00:00:00.000000Z",
        "identity": (identity(pick) if pick.once_in(3) else identities()[2]).decode("ascii", errors="replace"),
    }
    return _damaged(pick, json.dumps(_changed(pick, fields)).encode()).decode(errors="replace")


# --- the account of a user ------------------------------------------------------------------------------------------

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rwdl&se=2030-01-01T00:00:00Z&sig=c2lnbmF0dXJl"
_HOST = "https://acme1.blob.core.windows.net"
ACCOUNTS: list[dict[str, Any]] = [
    {"kind": kind, "account": "acme1", "endpoint": endpoint, "container": "siterig", "prefix": "rig-0123456789abcdef/",
     "secret": secret, "authority": authority}
    for kind, endpoint, secret, authority in (
        ("key", _HOST, KEY, ""),
        ("key", "http://localhost:1/acme1", KEY, ""),
        ("sas", _HOST, SAS, "-----BEGIN CERTIFICATE-----\n"),
        ("credential", _HOST, "", ""),
    )
]  # fmt: skip


def seal_account(fields: object, *, version: object = 2) -> bytes:
    """Return a ``user-account.json`` with the right checksum."""
    crc = crc32c(json.dumps(fields, sort_keys=True).encode())
    return json.dumps({"format": version, "crc32c": crc, "account": fields}).encode()


def user_account(pick: Choices) -> bytes:
    """Return a ``user-account.json`` of format 1 or 2, mostly damaged."""
    fields = _changed(pick, copy.deepcopy(pick.of(ACCOUNTS)))
    if pick.once_in(4):
        other = pick.of(ACCOUNTS)
        key = pick.of(sorted(other))
        fields[key] = other[key]
    if pick.once_in(3):
        raw = json.dumps({"format": 1, **fields}).encode()
    else:
        raw = seal_account(fields, version=pick.of([*VALUES, *TEXTS]) if pick.once_in(8) else 2)
    return _damaged(pick, raw)
