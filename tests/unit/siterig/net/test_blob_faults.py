"""Tests of rules in memory, of damage to bodies, and of rates."""

from __future__ import annotations

import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.net.blob_faults import (
    BlobAction,
    BlobFaultList,
    BlobRule,
    BodyDamage,
    LoseRequest,
    RefuseRequest,
    container_deleted,
    key_rotated,
    storage_error,
)
from siterig.net.blob_proxy import BlobService
from siterig.net.blob_requests import BlobRequest
from siterig.net.body_filter import BodyFilter
from siterig.net.pacing import Pacer


def request(operation: str, path: str = "cache/disk/1.part") -> BlobRequest:
    container, _, blob = path.partition("/")
    return BlobRequest(1, operation, container, blob, "PUT", "/", 0, "")


def through(damage: BodyDamage, pieces: list[bytes], *, body_bytes: int | None) -> tuple[bytes, bool, list[str]]:
    """Return the body as it was sent on, True if it was cut, and the effects."""
    effects: list[str] = []
    body_filter = BodyFilter(damage, body_bytes, "the body", effects.append, lambda why: effects.append(f"nothing: {why}"))
    sent = b""
    for piece in pieces:
        data, is_cut = body_filter.apply(piece)
        sent += data
        if is_cut:
            return sent, True, effects
    return sent, False, effects


def test_the_first_rule_that_may_fire_gets_the_request() -> None:
    first, second = storage_error("ServerBusy"), storage_error("InternalError")
    rules = [BlobRule(first, frozenset({"PutBlob"}), "cache/*.part", times=2), BlobRule(second)]
    faults = BlobFaultList(rules)
    chosen = [faults.decide(request("PutBlob")) for _ in range(3)]
    chosen += [faults.decide(request("GetBlob")), faults.decide(request("PutBlob", "cache/x"))]
    assert chosen == [first, first, second, second, second]
    assert [(rule.matched, rule.fired) for rule in rules] == [(3, 2), (5, 3)]


def test_a_storage_error_has_the_status_and_text_of_the_service() -> None:
    assert storage_error("ServerBusy", retry_after_s=7) == RefuseRequest(
        status=503, code="ServerBusy", message="The server is busy.", retry_after_s=7
    )
    assert (key_rotated().status, key_rotated().code) == (403, "AuthenticationFailed")
    assert (container_deleted().status, container_deleted().code) == (404, "ContainerNotFound")


def test_bad_names_are_errors_that_name_the_nearest() -> None:
    with pytest.raises(RigError, match=r"'ServerBuzy' .* nearest known one is 'ServerBusy'"):
        storage_error("ServerBuzy")
    with pytest.raises(RigError, match=r"'PutBlobs' .* nearest known one is 'PutBlob'"):
        BlobRule(BlobAction(), frozenset({"PutBlobs"}))
    with pytest.raises(RigError, match="'GetBlob' cannot be acknowledged and lost; allowed: CreateContainer, "):
        BlobRule(LoseRequest(), frozenset({"PutBlob", "GetBlob"}))


@pytest.mark.parametrize("url", ["ftp://h/a", "http:///a", "http://h:99999/a", "http://h/a/b", "http://h/a?sig=1", "h"])
def test_a_bad_url_of_a_service_is_an_error(url: str) -> None:
    with pytest.raises(RigError, match=r"allowed: http://HOST:PORT/ACCOUNT or https://HOST"):
        BlobService.parse(url)


def test_the_url_of_a_service_has_its_parts() -> None:
    service = BlobService.parse("http://127.0.0.1:10000/account/")
    assert (service.host, service.port, service.account_path, service.tls) == ("127.0.0.1", 10000, "/account", None)
    service = BlobService.parse("https://account.blob.core.windows.net")
    assert (service.port, service.account_path, service.tls is None) == (443, "", False)
    assert service.forwarded([(b"Host", b"127.0.0.1:1"), (b"x-ms-date", b"d")]) == [
        (b"Host", b"account.blob.core.windows.net"),
        (b"x-ms-date", b"d"),
    ]


@given(st.binary(min_size=1, max_size=200), st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_the_same_seed_flips_the_same_bits_in_any_pieces(body: bytes, piece_bytes: int, bits: int, seed: int) -> None:
    damage = BodyDamage(bits_flipped=bits, seed=seed)
    pieces = [body[begin : begin + piece_bytes] for begin in range(0, len(body), piece_bytes)]
    sent, is_cut, _ = through(damage, pieces, body_bytes=len(body))
    again, _, _ = through(damage, [body], body_bytes=len(body))
    assert sent == again and not is_cut
    assert sum((a ^ b).bit_count() for a, b in zip(sent, body, strict=True)) == min(bits, 8 * len(body))


def test_bits_at_an_offset_and_their_effect_in_words() -> None:
    sent, is_cut, effects = through(BodyDamage(bits_flipped=9, offset=2), [bytes(2), bytes(3)], body_bytes=5)
    assert (sent, is_cut) == (b"\0\0\xff\x01\0", False)
    assert effects == ["9 bits of the body are flipped, in bytes 2, 3"]


def test_a_body_without_a_known_length_is_damaged_in_its_first_piece() -> None:
    sent, _, effects = through(BodyDamage(bits_flipped=1, seed=1), [bytes(4), bytes(4)], body_bytes=None)
    assert sent.count(0) == 7 and sent[4:] == bytes(4)
    assert len(effects) == 1


@pytest.mark.parametrize(("kept", "expected"), [(0, b""), (3, b"abc"), (4, b"abcd"), (5, b"abcde")])
def test_a_body_ends_after_the_bytes_that_are_kept(kept: int, expected: bytes) -> None:
    assert through(BodyDamage(bytes_kept=kept), [b"abcd", b"ef"], body_bytes=6) == (
        expected,
        True,
        [f"the body ends after {kept} of 6 bytes"],
    )


@pytest.mark.parametrize("kept", [6, 7])
def test_a_body_that_is_no_longer_than_the_kept_part_is_not_cut(kept: int) -> None:
    assert through(BodyDamage(bytes_kept=kept), [b"abcdef"], body_bytes=6) == (
        b"abcdef",
        False,
        ["nothing: the body has 6 bytes"],
    )


async def test_a_rate_is_kept_and_pauses_are_not_made_up_for(autojump_clock: trio.testing.MockClock) -> None:
    pacer = Pacer(1000.0, SYSTEM_CLOCK)
    begin = trio.current_time()
    pieces = list(pacer.pieces(bytes(500)))
    assert (len(pieces), b"".join(pieces)) == (10, bytes(500))
    for piece in pieces:
        await pacer.wait(len(piece))
    assert trio.current_time() - begin == pytest.approx(0.5)
    await trio.sleep(10)
    await pacer.wait(1000)
    assert trio.current_time() - begin == pytest.approx(11.5)
