"""The register of certificates: who is accepted, and what remains after damage and kills."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.authority.register import (
    ADDED_BYTES_MAX,
    CertificateRegister,
    IssuedCertificate,
    read_register,
    register_text,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.peer import Peer
from siterig.blockfs.trust.signing_requests import holder_of, new_key
from tests.support.clocks import SettableClock

DAY_NS = 86_400 * 1_000_000_000
ENTRIES = (
    IssuedCertificate("1a", "vault", "vault", 5, 0, 10),
    IssuedCertificate("2b", "host", "site", 6, 1, 11, revoked_ns=8, reason="stolen"),
)


def issued(authority: Authority, role: str, name: str) -> Peer:
    peer = holder_of(authority.issue(role, name, new_key().public_key()))  # type: ignore[arg-type]
    assert peer is not None
    return peer


def test_a_peer_is_accepted_only_with_its_role_a_known_serial_and_a_valid_time(tmp_path: Path) -> None:
    clock = SettableClock()
    authority = Authority(tmp_path, clock)
    register = authority.register
    host = issued(authority, "host", "site")
    stranger = Peer("host", "site", "1234", host.not_before_ns, host.not_after_ns)
    impostor = Peer("host", "other", host.serial, host.not_before_ns, host.not_after_ns)
    assert register.problem(host, ["host"], clock) is None
    assert register.problem(None, ["host"], clock) == "its certificate names no holder"
    assert "may not be used here; allowed: the certificate of the vault" in str(register.problem(host, ["vault"], clock))
    for unknown in (stranger, impostor):
        assert "is not in the register" in str(register.problem(unknown, ["host"], clock))
    clock.step_wall_ns(host.not_after_ns + 1_000_000_000 - clock.wall_ns())
    assert "expired at" in str(register.problem(host, ["host"], clock))
    clock.step_wall_ns(host.not_before_ns - 1_000_000_000 - clock.wall_ns())
    assert "is not valid before" in str(register.problem(host, ["host"], clock))


def test_a_revoked_certificate_stays_revoked_after_a_restart(tmp_path: Path) -> None:
    clock = SettableClock()
    authority = Authority(tmp_path, clock)
    first, second = issued(authority, "host", "site"), issued(authority, "host", "site")
    authority.register.revoke([first.serial], "the machine was stolen", clock)
    authority.register.revoke([first.serial], "again", clock)
    again = Authority(tmp_path, clock).register
    assert str(again.problem(first, ["host"], clock)).endswith(": the machine was stolen")
    assert again.problem(second, ["host"], clock) is None


def test_a_credentials_file_is_valid_for_five_days(tmp_path: Path) -> None:
    clock = SettableClock()
    authority = Authority(tmp_path, clock)
    peer = issued(authority, "credentials", "site")
    clock.step_wall_ns(5 * DAY_NS - 10**9)
    assert authority.register.problem(peer, ["credentials"], clock) is None
    clock.step_wall_ns(2 * 10**9)
    assert authority.register.problem(peer, ["credentials"], clock) is not None


def test_entries_vanish_a_year_after_their_certificate_has_expired(tmp_path: Path) -> None:
    clock = SettableClock()
    authority = Authority(tmp_path, clock)
    old = issued(authority, "host", "site")
    clock.step_wall_ns(740 * DAY_NS)
    new = issued(authority, "host", "site")
    assert [entry.serial for entry in authority.register.entries] == [new.serial]
    assert authority.register.problem(old, ["host"], clock) is not None


def test_a_register_is_never_too_long_to_be_read(tmp_path: Path) -> None:
    now_ns, path = 10 * DAY_NS, tmp_path / "register.json"
    one = IssuedCertificate("f" * 16, "credentials", "x" * 63, now_ns, now_ns, now_ns + DAY_NS)
    count = ADDED_BYTES_MAX // (len(register_text([one, one])) - len(register_text([one])))
    valid = [replace(one, serial=f"{number:016x}") for number in range(count - 3)]
    expired = [replace(one, serial=f"{number:x}", not_after_ns=now_ns - 1) for number in range(1 << 62, (1 << 62) + 3)]
    path.write_bytes(register_text([*expired, *valid]))
    register = CertificateRegister(path)
    for number in (1 << 61, (1 << 61) + 1):
        register.add(replace(one, serial=f"{number:x}"))
    assert [entry.serial for entry in register.entries] == [entry.serial for entry in valid] + [
        f"{number:x}" for number in (1 << 61, (1 << 61) + 1)
    ], "the entries of expired certificates make room"
    with pytest.raises(RigError, match=f"has {count} certificates that have not expired, and no space") as caught:
        while True:
            register.add(one)
    assert caught.value.code == "RegisterFull"
    serials = [entry.serial for entry in register.entries]
    with pytest.raises(RigError, match="give a shorter one") as caught:
        register.revoke(serials, "\U0001f600" * 200, SettableClock())
    assert caught.value.code == "RegisterFull"
    register.revoke(serials, "stolen", SettableClock())
    assert CertificateRegister(path).entries == register.entries


@pytest.mark.parametrize("name", ["", "Host", "a.b", "-a", "a" * 64, "a\n"])
def test_a_name_that_no_certificate_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RigError) as caught:
        issued(Authority(tmp_path, SettableClock()), "host", name)
    assert caught.value.code == Code.InvalidName


def test_the_secrets_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", SettableClock())
    authority.replace_identity(tmp_path / "keys" / "vault.pem", "vault", "vault")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_register_without_its_authority_is_refused_and_not_replaced(tmp_path: Path) -> None:
    issued(Authority(tmp_path, SettableClock()), "host", "site")
    (tmp_path / "authority.pem").unlink()
    with pytest.raises(RigError) as caught:
        Authority(tmp_path, SettableClock())
    assert caught.value.code == Code.AuthorityUnusable
    assert not (tmp_path / "authority.pem").exists()


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"x" * 70_000])
def test_a_damaged_authority_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    Authority(tmp_path, SettableClock())
    (tmp_path / "authority.pem").write_bytes(data)
    with pytest.raises(RigError) as caught:
        Authority(tmp_path, SettableClock())
    assert caught.value.code == Code.AuthorityUnusable
    assert str(tmp_path / "authority.pem") in caught.value.message


def test_a_full_disk_issues_and_revokes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SettableClock()
    authority = Authority(tmp_path, clock)
    host = issued(authority, "host", "site")
    before = (tmp_path / "register.json").read_bytes()

    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("siterig.blockfs.trust.identity.write_atomically", full)
        for change in (
            lambda: issued(authority, "host", "site"),
            lambda: authority.register.revoke([host.serial], "x", clock),
        ):
            with pytest.raises(RigError) as caught:
                change()
            assert caught.value.code == Code.DiskFull
            assert caught.value.recoverable
    assert [entry.serial for entry in authority.register.entries] == [host.serial]
    assert authority.register.problem(host, ["host"], clock) is None
    assert (tmp_path / "register.json").read_bytes() == before


def test_a_register_is_read_as_it_was_written() -> None:
    assert read_register(register_text(ENTRIES)) == ENTRIES


@given(st.data())
def test_a_damaged_register_is_refused_with_a_reason(data: st.DataObject) -> None:
    raw = bytearray(register_text(ENTRIES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        assert read_register(bytes(raw)) == ENTRIES
    except ValueError as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda each: st.lists(each, max_size=3), max_leaves=5
)


@given(st.sampled_from(list(IssuedCertificate.__slots__)), JSON)
def test_a_register_with_a_right_checksum_has_only_values_of_the_right_kind(key: str, value: object) -> None:
    good = json.loads(register_text(ENTRIES))["certificates"]
    good[1][key] = value
    try:
        (_, found) = read_register(_sealed(good))
    except ValueError as error:
        assert "certificate 1" in str(error)
    else:
        assert getattr(found, key) == value
        assert isinstance(found.peer.rotation_ns, int)


def _sealed(certificates: list[dict[str, object]]) -> bytes:
    text = json.dumps(certificates, sort_keys=True).encode()
    return json.dumps({"format": 1, "sha256": hashlib.sha256(text).hexdigest(), "certificates": certificates}).encode()


def test_a_register_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "register.json").write_text('{"format": 2}')
    with pytest.raises(RigError) as caught:
        CertificateRegister(tmp_path / "register.json")
    assert caught.value.code == Code.AuthorityUnusable
    assert "format: 2; allowed: 1" in caught.value.message
