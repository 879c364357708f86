"""The cache account's judgement of answers, with the SDK's transport replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)
from azure.storage.blob import BlobPrefix, BlobServiceClient, ContainerClient

from siterig.azure_emu.storage.blob_cache import UNLISTED, BlobCacheAccount, classified
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.bundle import BundleName
from siterig.blockfs.transfer.part_name import PartName

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
ACCOUNT = f"DefaultEndpointsProtocol=http;AccountName=acme;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/acme;"
PART = PartName("0f0e0d0c-0000-4000-8000-000000000001", 1, "sync", 2, 2)


def answer(status: int, code: str, kind: type[HttpResponseError] = HttpResponseError, text: str = "") -> HttpResponseError:
    error = kind(message=text or code)
    error.status_code = status
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("999999", 1800.0), ("Mon, 30 Nov 2026 00:00:00 GMT", 0.0), ("", 0.0)]
)
def test_the_pause_that_the_account_asks_for_is_kept_with_a_limit(header: str, seconds: float) -> None:
    error = answer(503, "ServerBusy")
    error.response = SimpleNamespace(headers={"Retry-After": header})
    assert classified(error, what="put x", where="account acme").retry_after_s == seconds


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the SDK's client of the container for the accounts that the test creates."""
    client = Mock(spec_set=ContainerClient)
    monkeypatch.setattr(BlobServiceClient, "get_container_client", lambda _service, _name: client)
    return client


@pytest.fixture
def cache(container: Any) -> BlobCacheAccount:
    account = BlobCacheAccount(ACCOUNT)
    account.close()
    return account


def let_listing_fail_for(container: Any, names: list[str]) -> None:
    """Make the container list these blobs like Azurite's: a list with a control character in a name fails."""

    def under(prefix: str) -> list[str]:
        found = [name for name in names if name.startswith(prefix)]
        if not all(name.isprintable() for name in found):
            raise answer(500, "InternalServerError")
        return found

    def list_blobs(name_starts_with: str) -> list[Any]:
        return [SimpleNamespace(name=name, size=3) for name in under(name_starts_with)]

    def walk_blobs(name_starts_with: str, delimiter: str) -> list[Any]:
        at = name_starts_with.rindex(delimiter) + 1
        found = [name for name in names if name.startswith(name_starts_with)]
        return [BlobPrefix(prefix=prefix) for prefix in {name[: name.index(delimiter, at) + 1] for name in found}]

    container.list_blobs, container.walk_blobs = list_blobs, walk_blobs


@pytest.mark.parametrize("stray", ["x\x1b[2J", "00000001/log/a\x07", "00000001/x\x01", "00000001/sync/.\x00"])
async def test_a_name_that_the_account_cannot_list_hides_no_part(
    cache: BlobCacheAccount, container: Any, stray: str
) -> None:
    parts = [PART, PartName(PART.disk_id, 12, "log", 7, 9)]
    names = [part.blob() for part in parts] + [f"{PART.disk_id}/{stray}"]
    let_listing_fail_for(container, names)
    found = await cache.list(PART.disk_id)
    assert found.sizes == dict.fromkeys(parts, 3)
    assert found.foreign == (f"{PART.disk_id}/{UNLISTED}",)


async def test_a_list_that_fails_for_another_reason_is_an_outage(cache: BlobCacheAccount, container: Any) -> None:
    container.list_blobs.side_effect = answer(500, "InternalServerError")
    container.walk_blobs.side_effect = answer(500, "InternalServerError")
    with pytest.raises(RigError) as caught:
        await cache.list(PART.disk_id)
    assert (caught.value.code, caught.value.recoverable) == ("CacheUnreachable", True)


@pytest.mark.parametrize(
    ("error", "code", "recoverable"),
    [
        (ServiceRequestError("refused"), "CacheUnreachable", True),
        (ServiceResponseTimeoutError("late"), "CacheUnreachable", True),
        (answer(503, "ServerBusy"), "CacheUnreachable", True),
        (answer(429, "TooManyRequests"), "CacheUnreachable", True),
        (answer(409, "ContainerBeingDeleted"), "CacheUnreachable", True),
        (answer(403, "AuthenticationFailed", ClientAuthenticationError), "CacheAuthentication", False),
        (
            answer(403, "AuthorizationFailure", text="Server failed to authenticate the request. Make sure"),
            "CacheAuthentication",
            False,
        ),
        (answer(401, "InvalidAuthenticationInfo"), "CacheAuthentication", False),
        (answer(403, "AuthorizationFailure"), "CacheForbidden", False),
        (answer(400, "InvalidBlobOrBlock"), "CacheError", False),
        (AzureError("odd"), "CacheError", False),
    ],
)
def test_errors_are_distinguished(error: AzureError, code: str, recoverable: bool) -> None:
    ours = classified(error, what="put x", where="account acme")
    assert (ours.code, ours.recoverable) == (code, recoverable)
    assert ours.message.startswith("cannot put x: ")
    assert "acme" in ours.message


def test_the_error_forbidden_names_the_things_to_check() -> None:
    ours = classified(answer(403, "AuthorizationFailure"), what="list d/", where="account acme")
    assert (
        ours.message == "cannot list d/: account acme forbids it (403 AuthorizationFailure): check its firewall and rights"
    )


def test_errors_of_a_changed_key_and_a_large_body_name_the_things_to_check() -> None:
    ours = classified(answer(403, "AuthenticationFailed", ClientAuthenticationError), what="put x", where="account acme")
    assert ours.message == (
        "cannot put x: account acme does not accept the account key (403 AuthenticationFailed): check whether its key was "
        "changed, and this host's clock; then siterig take-point makes the agent try again"
    )
    ours = classified(answer(413, "RequestBodyTooLarge"), what="put x", where="account acme")
    assert (ours.code, ours.recoverable) == ("CacheError", False)
    assert ours.message == (
        "cannot put x: account acme takes no body of this size (413 RequestBodyTooLarge): check what limits requests on the "
        "way to it"
    )


@pytest.mark.parametrize(("status", "code"), [(409, "BlobAlreadyExists"), (412, "ConditionNotMet")])
async def test_put_of_a_part_that_exists_reports_it(cache: BlobCacheAccount, container: Any, status: int, code: str) -> None:
    container.upload_blob.side_effect = answer(status, code, ResourceExistsError)
    assert await cache.put(PART, b"x") is False


async def test_put_into_a_container_that_is_being_deleted_is_no_success(cache: BlobCacheAccount, container: Any) -> None:
    container.upload_blob.side_effect = answer(409, "ContainerBeingDeleted", ResourceExistsError)
    with pytest.raises(RigError) as caught:
        await cache.put(PART, b"x")
    assert (caught.value.code, caught.value.recoverable) == ("CacheUnreachable", True)


async def test_put_makes_a_container_that_vanished_and_tries_once_more(cache: BlobCacheAccount, container: Any) -> None:
    gone = answer(404, "ContainerNotFound", ResourceNotFoundError)
    container.upload_blob.side_effect = [gone, None]
    assert await cache.put(PART, b"x") is True
    container.create_container.assert_called_once_with()
    container.upload_blob.side_effect = [gone, gone]
    with pytest.raises(RigError, match="refused it \\(404 ContainerNotFound\\)"):
        await cache.put(PART, b"x")


async def test_list_is_sorted_and_names_other_blobs(cache: BlobCacheAccount, container: Any) -> None:
    later = PartName(PART.disk_id, 1, "sync", 10, 10)
    foreign = [
        f"{PART.disk_id}/notes.txt",
        PartName(PART.disk_id, 1, "sync", 3, 4).blob(),
        PartName(PART.disk_id, 1, "log", 9, 8).blob(),
        PartName(PART.disk_id, 1, "log", 0, 8).blob(),
        PartName(PART.disk_id, 1, "log", 1, 10**20 - 1).blob(),
    ]
    names = [later.blob(), *foreign, PART.blob()]
    container.list_blobs.return_value = [SimpleNamespace(name=name, size=7) for name in names]
    found = await cache.list(PART.disk_id)
    container.list_blobs.assert_called_once_with(name_starts_with=f"{PART.disk_id}/")
    assert (found.parts, found.sizes[later], list(found.foreign)) == ([PART, later], 7, sorted(foreign))


@pytest.mark.parametrize(
    "error",
    [
        IncompleteReadError("the body ends early"),
        ServiceResponseTimeoutError("late"),
        answer(500, "InternalError"),
        answer(403, "AuthorizationFailure"),
        answer(413, "RequestBodyTooLarge"),
    ],
)
async def test_an_unreadable_blob_is_distinguished_from_an_unreachable_account(
    cache: BlobCacheAccount, container: Any, error: AzureError
) -> None:
    container.download_blob.side_effect = error
    with pytest.raises(RigError) as caught:
        await cache.get(PART)
    assert (caught.value.code, caught.value.recoverable) == ("PartUnreadable", True)
    assert PART.blob() in caught.value.message
    container.get_container_properties.side_effect = ServiceRequestError("refused")
    with pytest.raises(RigError) as caught:
        await cache.get(PART)
    assert caught.value.code == classified(error, what="", where="").code


async def test_a_blob_that_is_too_long_for_a_part_is_not_downloaded(cache: BlobCacheAccount, container: Any) -> None:
    container.download_blob.return_value = blob = Mock(size=2 << 30)
    with pytest.raises(RigError, match="blob of 2147483648 bytes; a part has at most") as caught:
        await cache.get(PART)
    assert caught.value.code == "PartCorrupt"
    blob.readall.assert_not_called()


async def test_a_part_that_cannot_be_read_does_not_hold_up_others(cache: BlobCacheAccount, container: Any) -> None:
    """Three bad ones are read again and again; a good one is read meanwhile, though only two requests are in flight."""
    bad = [PartName(PART.disk_id, 1, "sync", number, number) for number in (11, 12, 13)]
    stuck, names = threading.Event(), {part.blob() for part in bad}

    def download(name: str, **_options: object) -> Mock:
        if name in names and container.download_blob.call_count > len(bad):
            stuck.wait(60)
        if name in names:
            raise IncompleteReadError("the body ends early")
        return Mock(size=4, readall=lambda: b"good")

    container.download_blob.side_effect = download
    for part in bad:
        with pytest.raises(RigError):
            await cache.get(part)
    try:
        async with trio.open_nursery() as nursery:

            async def again(part: PartName) -> None:
                with pytest.raises(RigError):
                    await cache.get(part)

            for part in bad:
                nursery.start_soon(again, part)
            await trio.testing.wait_all_tasks_blocked()
            assert await cache.get(PART) == b"good"
            stuck.set()
    finally:
        stuck.set()


async def test_a_replacement_overwrites_the_blob(cache: BlobCacheAccount, container: Any) -> None:
    assert await cache.put(PART, b"x", replace=True)
    container.upload_blob.assert_called_once_with(PART.blob(), b"x", overwrite=True)


async def test_missing_part_is_an_error_to_get_and_nothing_to_delete(cache: BlobCacheAccount, container: Any) -> None:
    gone = answer(404, "BlobNotFound", ResourceNotFoundError)
    container.download_blob.side_effect = gone
    container.delete_blob.side_effect = gone
    await cache.delete(PART)
    with pytest.raises(RigError) as caught:
        await cache.get(PART)
    assert caught.value.code == "PartNotFound"
    assert caught.value.message == (
        f"{PART.blob()} is not in container asr-cache of cache storage account acme at 127.0.0.1:1"
    )


async def test_no_more_than_two_requests_are_in_flight(cache: BlobCacheAccount, container: Any) -> None:
    inside, most, enough = 0, 0, trio.Event()

    def upload(*_args: object, **_options: object) -> None:
        def enter(step: int) -> None:
            nonlocal inside, most
            inside += step
            most = max(most, inside)
            if inside == 2:
                enough.set()

        trio.from_thread.run_sync(enter, 1)
        trio.from_thread.run(enough.wait)
        trio.from_thread.run_sync(enter, -1)

    container.upload_blob.side_effect = upload
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(cache.put, PART, b"x")
    assert most == 2


NEW_KEY = "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldy1uZXc="


@pytest.mark.parametrize("newest", [NEW_KEY, KEY, None])
async def test_a_refused_request_is_repeated_with_the_current_key(container: Any, newest: str | None) -> None:
    used: list[str] = []

    def current() -> str:
        if newest is None:
            raise RigError(Code.BadAccountKey, "damaged")
        return newest

    cache = BlobCacheAccount(ACCOUNT, current_key=current)
    cache.close()

    def upload(_blob: str, _data: bytes, *, overwrite: bool) -> None:
        used.append(cache._service.credential.account_key)  # noqa: SLF001 (the SDK signs with it)
        if used[-1] != NEW_KEY:
            raise answer(403, "AuthenticationFailed", ClientAuthenticationError)

    container.upload_blob.side_effect = upload
    if newest == NEW_KEY:
        assert await cache.put(PART, b"x")
        assert await cache.put(PART, b"y")
        assert used == [KEY, NEW_KEY, NEW_KEY]
    else:
        with pytest.raises(RigError) as caught:
            await cache.put(PART, b"x")
        assert (caught.value.code, used) == ("CacheAuthentication", [KEY])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(f"AccountKey={KEY};", "AccountKey"),
        lambda text: text.replace("AccountName=acme;", "").replace("BlobEndpoint=http://127.0.0.1:1/acme;", ""),
        lambda _text: "",
    ],
)
def test_malformed_connection_string_is_an_error_that_does_not_quote_it(change: Callable[[str], str]) -> None:
    with pytest.raises(RigError) as caught:
        BlobCacheAccount(change(ACCOUNT))
    assert caught.value.code == "BadConnectionString"
    assert KEY not in caught.value.message


def test_loopback_account_is_not_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = BlobServiceClient.from_connection_string

    def record(text: str, **options: Any) -> Any:
        seen.append(options["use_env_settings"])
        return real(text, **options)

    monkeypatch.setattr(BlobServiceClient, "from_connection_string", record)
    BlobCacheAccount(ACCOUNT).close()
    BlobCacheAccount(
        f"DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={KEY};EndpointSuffix=core.windows.net"
    ).close()
    assert seen == [False, True]


# ---- an emulated account whose disk is full


@pytest.mark.parametrize("error", [answer(500, "InternalError"), ServiceRequestError("closed"), answer(400, "odd")])
async def test_a_full_disk_under_an_emulated_account_is_no_outage(
    container: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: AzureError
) -> None:
    cache = BlobCacheAccount(ACCOUNT, folder=tmp_path)
    cache.close()
    container.upload_blob.side_effect = error
    real = os.statvfs(tmp_path)
    for free_blocks, full in ((1 << 30, False), (0, True)):
        found = os.statvfs_result((*real[:4], free_blocks, *real[5:]))
        monkeypatch.setattr(os, "statvfs", lambda _path, found=found: found)
        with pytest.raises(RigError) as failed:
            await cache.put(PART, b"x" * 4096)
        assert (failed.value.code == "DiskFull") == full
        assert (str(tmp_path) in failed.value.message) == full
        assert failed.value.recoverable or not full


async def test_an_account_elsewhere_is_not_asked_for_room(
    cache: BlobCacheAccount, container: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.upload_blob.side_effect = answer(500, "InternalError")
    monkeypatch.setattr(os, "statvfs", lambda _path: pytest.fail("asked"))
    with pytest.raises(RigError) as failed:
        await cache.put(PART, b"x")
    assert failed.value.code == "CacheUnreachable"


async def test_several_disks_are_listed_at_once(cache: BlobCacheAccount, container: Any) -> None:
    other = PartName("0f0e0d0c-0000-4000-8000-000000000002", 1, "log", 1, 9)
    names = [PART.blob(), f"{PART.disk_id}/stray", other.blob(), "foreign"]
    let_listing_fail_for(container, names)
    asked: list[str] = []
    lists = container.list_blobs

    def list_blobs(name_starts_with: str) -> list[Any]:
        asked.append(name_starts_with)
        return lists(name_starts_with)  # type: ignore[no-any-return]

    container.list_blobs = list_blobs
    found = await cache.list_all([PART.disk_id, other.disk_id, "absent"])
    assert asked == [""]
    assert (found[PART.disk_id].parts, found[PART.disk_id].foreign) == ([PART], (f"{PART.disk_id}/stray",))
    assert (found[other.disk_id].sizes, found["absent"].parts) == ({other: 3}, [])
    bundle = BundleName.of([PART], 0)
    let_listing_fail_for(container, [*names, bundle.blob(), "bundles/log/notes.txt"])
    listing = await cache.list_with_bundles([other.disk_id])
    assert (listing.disks[other.disk_id].sizes, listing.bundles) == ({other: 3}, {bundle: 3})


async def test_a_name_that_cannot_be_listed_makes_each_disk_be_listed_by_itself(
    cache: BlobCacheAccount, container: Any
) -> None:
    other = PartName("0f0e0d0c-0000-4000-8000-000000000002", 1, "log", 1, 9)
    let_listing_fail_for(container, [PART.blob(), other.blob(), "x\x1b[2J"])
    found = await cache.list_all([PART.disk_id, other.disk_id])
    assert (found[PART.disk_id].parts, found[other.disk_id].parts) == ([PART], [other])
    bundle = BundleName.of([PART], 0)
    let_listing_fail_for(container, [PART.blob(), bundle.blob(), "x\x1b[2J"])
    listing = await cache.list_with_bundles([PART.disk_id])
    assert (listing.disks[PART.disk_id].parts, list(listing.bundles)) == ([PART], [bundle])
