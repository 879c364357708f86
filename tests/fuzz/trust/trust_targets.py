"""Each reader of a file of trust is compared with a strict one, written from the page of its format."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import string
from pathlib import Path
from typing import Any

from siterig.azure_emu.authority.register import CertificateRegister
from siterig.azure_emu.user_account import stored_account
from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.trust.credentials_file import read_credentials
from siterig.blockfs.trust.identity import Identity
from tests.fuzz.log_targets import assert_clear
from tests.fuzz.strict_log import crc32c
from tests.fuzz.trust.trust_damage import KEY, identities

_BASE64 = set(string.ascii_letters + string.digits + "+/=")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def assert_no_secret(error: RigError) -> None:
    """Check that a message quotes no line of a private key, no account key and no signature."""
    key_lines = [line for raw in identities() for line in raw.decode().split("\n")[1:4]]
    for secret in (*key_lines, KEY, "c2lnbmF0dXJl"):
        assert secret not in error.message, error.message


# --- identities: docs/reference/formats/certificates.md -------------------------------------------------------------


def _strict_blocks(raw: bytes) -> list[tuple[str, str]]:
    """Return the PEM blocks, each with its name; other text is ignored."""
    lines, found = raw.decode("latin-1").split("\n"), []
    at = 0
    while at < len(lines) - 1:  # the text after the last line feed is no line
        begin = re.fullmatch(r"-----BEGIN ([A-Z ]+)-----", lines[at])
        stop = at + 1
        while begin and stop < len(lines) - 1 and set(lines[stop]) <= _BASE64:
            stop += 1
        if begin and stop > at + 1 and stop < len(lines) - 1 and lines[stop] == f"-----END {begin[1]}-----":
            found.append((begin[1], "\n".join(lines[at : stop + 1]) + "\n"))
            at = stop
        at += 1
    return found


def identity(raw: bytes, folder: Path) -> str:
    """Compare ``Identity.parts`` with the strict reader; OpenSSL then takes a good one, or it is an error."""
    path = folder / "host.pem"
    path.write_bytes(raw)
    found = _strict_blocks(raw)
    good = len(raw) <= 65536 and [kind for kind, _ in found] == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        parts = Identity(path).parts()
    except RigError as error:
        assert not good, error.message
        assert_clear(error, {"BadCertificate"}, path)
        assert_no_secret(error)
        try:
            Identity(path).load_into(context)
        except RigError as again:
            assert again.message == error.message
            return error.code
        raise AssertionError("a bad identity was used") from None
    assert good, "the reader accepted a bad identity"
    assert list(parts) == [text for _, text in found]
    try:
        Identity(path).load_into(context)
    except RigError as error:
        assert_clear(error, {"BadCertificate"}, path)
        assert_no_secret(error)
        assert raw not in identities()
        return "refused by OpenSSL"
    return "good"


# --- the register: docs/reference/formats/certificates.md -----------------------------------------------------------


def _is_time(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_entry(entry: object) -> bool:
    keys = {"serial", "role", "name", "issued_ns", "not_before_ns", "not_after_ns", "revoked_ns", "reason"}
    return (
        isinstance(entry, dict)
        and entry.keys() == keys
        and isinstance(entry["serial"], str)
        and re.fullmatch("[0-9a-f]{1,40}", entry["serial"]) is not None
        and isinstance(entry["role"], str)
        and entry["role"] in {"vault", "storage", "host", "credentials"}
        and isinstance(entry["name"], str)
        and NAME.fullmatch(entry["name"]) is not None
        and all(_is_time(entry[key]) for key in ("issued_ns", "not_before_ns", "not_after_ns"))
        and (entry["revoked_ns"] is None or _is_time(entry["revoked_ns"]))
        and (entry["reason"] is None or (isinstance(entry["reason"], str) and len(entry["reason"]) <= 200))
    )


def _strict_register(raw: bytes) -> list[dict[str, Any]] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if len(raw) > 1 << 20 or not isinstance(document, dict) or document.keys() != {"format", "sha256", "certificates"}:
        return None
    entries = document["certificates"]
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    good = type(document["format"]) is int and document["format"] == 1 and document["sha256"] == digest
    return entries if good and isinstance(entries, list) and all(map(_is_entry, entries)) else None


def register(raw: bytes, folder: Path) -> str:
    """Compare ``CertificateRegister`` with the strict reader."""
    path = folder / "register.json"
    path.write_bytes(raw)
    want = _strict_register(raw)
    try:
        got = CertificateRegister(path).entries
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"AuthorityUnusable"}, path)
        return error.code
    assert want is not None, "the reader accepted a bad register"
    assert [{key: getattr(entry, key) for key in entry.__slots__} for entry in got] == want
    for entry in got:
        for time_ns in (entry.issued_ns, entry.not_before_ns, entry.not_after_ns, entry.revoked_ns or 0):
            assert rfc3339(time_ns)
        assert isinstance(entry.peer.needs_rotation(SYSTEM_CLOCK), bool)
    return "good"


# --- vault credentials files: docs/reference/formats/certificates.md -------------------------------------------------


def _strict_credentials(text: str) -> tuple[str, str] | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if len(text) > 131_072 or not isinstance(fields, dict):
        return None
    if fields.keys() != {"format", "kind", "site", "expires", "identity"} or fields["kind"] != "siterig vault credentials":
        return None
    site, pem = fields["site"], fields["identity"]
    if not (type(fields["format"]) is int and fields["format"] == 1 and isinstance(site, str) and NAME.fullmatch(site)):
        return None
    if not isinstance(fields["expires"], str) or not isinstance(pem, str) or not pem.isascii():
        return None
    kinds = [kind for kind, _ in _strict_blocks(pem.encode())]
    return (site, pem) if kinds == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"] else None


def credentials(text: str, _folder: Path) -> str:
    """Compare ``read_credentials`` with the strict reader."""
    want = _strict_credentials(text)
    try:
        site, identity_bytes = read_credentials(text, "file F")
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"BadCredentialsFile"}, Path("file F"))
        assert_no_secret(error)
        return error.code
    assert want is not None, "the reader accepted a bad file"
    assert (site, identity_bytes.decode()) == want
    return "good"


# --- the account of a user: docs/reference/formats/user-account.md ----------------------------------------------------


def _strict_account(raw: bytes) -> dict[str, str] | None:
    """Return the keys of the account, whose values may still not fit together; None for a damaged file."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        return None
    if document["format"] == 1:
        fields = {key: value for key, value in document.items() if key != "format"}
    elif document["format"] == 2 and document.keys() == {"format", "crc32c", "account"}:
        fields, crc = document["account"], document["crc32c"]
        if (
            type(crc) is not int
            or crc != crc32c(json.dumps(fields, sort_keys=True).encode())
            or not isinstance(fields, dict)
        ):
            return None
    else:
        return None
    limits = {
        "kind": 10,
        "account": 24,
        "endpoint": 1024,
        "container": 63,
        "prefix": 21,
        "secret": 8192,
        "authority": 1 << 18,
    }
    if fields.keys() != limits.keys() or not all(isinstance(fields[key], str) for key in limits):
        return None
    good = (
        all(len(fields[key]) <= most for key, most in limits.items())
        and fields["kind"] in ("key", "sas", "credential")
        and re.fullmatch("[a-z0-9]{3,24}", fields["account"])
        and re.fullmatch(r"rig-[0-9a-f]{16}/", fields["prefix"])
        and re.fullmatch(r"https?://[!-~]+", fields["endpoint"])
    )
    return fields if good else None


def user_account(raw: bytes, folder: Path) -> str:
    """Compare ``stored_account.load`` with the strict reader; a good account is stored and read back."""
    path = folder / stored_account.FILE_NAME
    path.write_bytes(raw)
    path.chmod(0o600)
    want = _strict_account(raw)
    try:
        got = stored_account.load(folder)
    except RigError as error:
        assert_clear(error, {"BadAccountSecret"}, path)
        assert_no_secret(error)
        return "do not fit together" if want is not None else error.code
    assert want is not None, "the reader accepted a bad file"
    found = got.secret
    assert want == {
        "kind": found.kind,
        "account": found.account,
        "endpoint": found.endpoint,
        "container": found.container,
        "prefix": got.prefix,
        "secret": found.secret,
        "authority": got.authority,
    }
    assert found.secret == "" or found.secret not in repr(got)
    stored_account.store(folder, got)
    assert stored_account.load(folder) == got
    assert json.loads(path.read_bytes())["format"] == 2
    return "good"
