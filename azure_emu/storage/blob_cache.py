"""The cache storage account, Azurite's or a real one, by connection string; no other module calls the blob SDK.

Fault contract: any call may fail, time out or be answered late, and the account may forget what it has acknowledged (a
killed Azurite does).  A call that failed may still have had its effect.  Therefore every call can be repeated: put writes
once, delete ignores a missing blob, and a container that vanished is created again.  This module retries nothing.  The
caller's retry table does, and ``recoverable`` of an error decides.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from string import digits
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobPrefix, BlobServiceClient, ContainerClient

from siterig.azure_emu.storage.link_transport import LinkTransport
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.codec import BLOB_BYTES_MAX
from siterig.blockfs.transfer.part_name import Listing, PartName
from siterig.blockfs.trust.peer import refusal_of

CONTAINER = "asr-cache"
IN_FLIGHT_MAX = 2
"""Limit of concurrent calls; more make Azurite slower."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""The limit between two packets of an answer, not for the whole answer."""
GET_TIMEOUT_S = 20.0
"""The same limit for the bytes of a part; a blob that cannot be read should be repaired within a minute."""
SINGLE_PUT_BYTES_MAX = 256 << 20
"""Above this size the SDK sends blocks and commits them under the same condition."""

UNLISTED = "(a blob whose name cannot be listed)"
"""The name that stands for the blobs that make a list of the account fail."""

_OWN_BYTES = 1 << 20
"""Bytes that an emulator writes in addition to a blob: its list of blobs and blocks."""
RETRY_AFTER_MAX_S = 1800.0
"""A longer Retry-After is taken for this: the last delay of the official retry table."""
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({"ContainerBeingDeleted", "OperationTimedOut"})
_ALREADY_THERE = frozenset({"BlobAlreadyExists", "ConditionNotMet"})  # for a put, and for the commit of a put in blocks
_T = TypeVar("_T")

logging.getLogger("azure").setLevel(logging.ERROR)  # it logs each request at INFO, and a body that ends early at WARNING
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns about each refused connection, and the error reports that


class BlobCacheAccount(CacheAccount):
    """Parts as block blobs named ``PartName.blob()`` in the container ``asr-cache``.

    At most ``in_flight_max`` threads share the SDK's client.  A cancelled call returns at once; its request may still
    succeed.
    """

    def __init__(
        self,
        connection_string: str,
        *,
        folder: Path | None = None,
        link: Path | None = None,
        tls: ssl.SSLContext | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
        current_key: Callable[[], str] | None = None,
    ) -> None:
        """Parse the connection string; the first call contacts the account.

        Args:
            connection_string: holds the key, so it must not be logged.
            folder: the folder in which an emulator on this host keeps its blobs.  An emulator whose disk is full returns the
                same error as a broken one; the free space of this folder decides which of the two it is.
            link: the socket of the proxy between this process and the account; requests use it while it exists.
            tls: settings for an account whose certificate is of the authority of the rig.
            in_flight_max: limit of concurrent calls.
            current_key: reads the key that clients of the account use now; called when the account refuses a key, so that a
                rotation interrupts nothing.  Any error of it is that of the request.
        Raises:
            RigError: ``BadConnectionString``.
        """
        self._folder = folder
        self._current_key = current_key
        self._limiter = trio.CapacityLimiter(in_flight_max)
        self._suspects = trio.CapacityLimiter(1)
        self._unreadable: set[PartName] = set()
        fields = _fields(connection_string)
        options: dict[str, Any] = {
            "connection_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "use_env_settings": not _is_loopback(fields.get("BlobEndpoint", "")),
        }
        if link is not None or tls is not None:
            options = {"transport": LinkTransport(link, tls, **options)}
        try:
            if not (fields.get("AccountKey") or fields.get("SharedAccessSignature")):  # the SDK would continue anonymously
                raise ValueError  # noqa: TRY301  (the handler raises the same error for what the SDK finds)
            self._service = BlobServiceClient.from_connection_string(
                connection_string,
                retry_total=0,
                max_single_put_size=SINGLE_PUT_BYTES_MAX,
                **options,
            )
        except ValueError:  # its text may quote the string, which holds the key
            raise RigError(
                Code.BadConnectionString,
                "the cache storage account's connection string is malformed: it needs AccountName, AccountKey"
                " and BlobEndpoint (or EndpointSuffix)",
            ) from None
        self._container = self._service.get_container_client(CONTAINER)
        self._where = f"cache storage account {self._service.account_name} at {urlsplit(self._service.url).netloc}"

    async def ensure_container(self) -> None:
        """Create the container if it does not exist."""
        await self._call("create container asr-cache", self._create_container)

    async def delete_container(self) -> None:
        """Delete the container with all its parts; no-op if there is none."""

        def work() -> None:
            try:
                self._container.delete_container()
            except ResourceNotFoundError:
                return

        await self._call(f"delete container {CONTAINER}", work)

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        """Upload a part once, or in any case with ``replace``; return False if the blob exists, which is success, too."""

        def upload() -> bool:
            try:
                self._container.upload_blob(part.blob(), data, overwrite=replace)
            except HttpResponseError as e:
                if _error_code(e) not in _ALREADY_THERE:
                    raise
                return False
            return True

        what = f"put {part.blob()}"
        try:
            return await self._call(what, lambda: self._in_container(upload))
        except RigError as error:
            if error.code in (Code.CacheUnreachable, Code.CacheError) and self._is_full(len(data)):
                raise RigError(
                    Code.DiskFull,
                    f"cannot {what}: the host's disk with {self._folder}, where {self._where} keeps its blobs, is full",
                    recoverable=True,
                ) from error
            raise

    def _is_full(self, needed_bytes: int) -> bool:
        """Return True if the emulator's disk on this host has no space for these bytes and the emulator's own."""
        if self._folder is None:
            return False
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < needed_bytes + _OWN_BYTES or (found.f_files > 0 and found.f_favail == 0)

    async def list(self, disk_id: str) -> Listing:
        """Return the blobs of one disk; names that are no parts are listed separately."""

        def blobs() -> list[tuple[str, int]]:
            try:
                return _blobs(self._container, f"{disk_id}/")
            except HttpResponseError as e:
                if e.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                return [*_blobs_like_parts(self._container, disk_id), (f"{disk_id}/{UNLISTED}", 0)]

        return Listing.of(disk_id, await self._call(f"list {disk_id}/", lambda: self._in_container(blobs)))

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        """Return the blobs of several disks, with one list of the container; one disk is listed by itself.

        If a name in the container makes that list fail, each disk is listed by itself.
        """

        def blobs() -> list[tuple[str, int]] | None:
            try:
                return _blobs(self._container, "")
            except HttpResponseError as e:
                if e.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                return None

        found = None
        if len(disk_ids) > 1:
            found = await self._call(f"list container {CONTAINER}", lambda: self._in_container(blobs))
        if found is None:
            return await super().list_all(disk_ids)
        own: dict[str, list[tuple[str, int]]] = {disk_id: [] for disk_id in disk_ids}
        for name, size_bytes in found:
            if (disk := own.get(name.partition("/")[0])) is not None:
                disk.append((name, size_bytes))
        return {disk_id: Listing.of(disk_id, disk) for disk_id, disk in own.items()}

    async def get(self, part: PartName) -> bytes:
        """Return the bytes of a part.

        Parts that are known to be unreadable are read one at a time, so that they do not delay the others.

        Raises:
            RigError: ``PartNotFound``; ``PartCorrupt`` if the blob is too long for a part; ``PartUnreadable`` (recoverable)
                if this blob cannot be read while the account answers other requests.
        """

        def download() -> bytes:
            try:
                blob = self._container.download_blob(part.blob(), read_timeout=GET_TIMEOUT_S)
                if blob.size > BLOB_BYTES_MAX:
                    raise RigError(
                        Code.PartCorrupt,
                        f"part {part.blob()}: blob of {blob.size} bytes; a part has at most {BLOB_BYTES_MAX}",
                    )
                return blob.readall()
            except ResourceNotFoundError:
                raise RigError(
                    Code.PartNotFound, f"{part.blob()} is not in container {CONTAINER} of {self._where}"
                ) from None

        try:
            data = await self._call(f"get {part.blob()}", download, self._suspects if part in self._unreadable else None)
        except RigError as exc:
            if exc.code in (Code.PartNotFound, Code.PartCorrupt, Code.CacheAuthentication) or not await self._answers():
                raise
            self._unreadable.add(part)
            raise RigError(
                Code.PartUnreadable,
                f"part {part.blob()} cannot be read, while the account answers other requests: {exc.message}",
                recoverable=True,
            ) from exc
        self._unreadable.discard(part)
        return data

    async def _answers(self) -> bool:
        """Return True if the account answers a request that needs no bytes of a part."""
        try:
            await self._call(f"look at container {CONTAINER}", self._container.get_container_properties)
        except RigError:
            return False
        return True

    async def delete(self, part: PartName) -> None:
        """Delete the blob of a part; no-op if there is none."""

        def work() -> None:
            try:
                self._container.delete_blob(part.blob())
            except ResourceNotFoundError:
                return

        await self._call(f"delete {part.blob()}", work)
        self._unreadable.discard(part)

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def _create_container(self) -> None:
        try:
            self._container.create_container()
        except ResourceExistsError as e:
            if _error_code(e) != "ContainerAlreadyExists":  # the container may be in deletion, which is no success
                raise

    def _in_container(self, work: Callable[[], _T]) -> _T:
        """Call ``work``; if the container does not exist, create it and call ``work`` again."""
        try:
            return work()
        except ResourceNotFoundError as e:
            if _error_code(e) != "ContainerNotFound":
                raise
        self._create_container()
        return work()

    async def _call(self, what: str, work: Callable[[], _T], limiter: trio.CapacityLimiter | None = None) -> _T:
        used = self._key
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter or self._limiter, abandon_on_cancel=True)
        except AzureError as e:
            failure = classified(e, what=what, where=self._where)
            if failure.code != Code.CacheAuthentication or not self._has_other_key(used):
                raise failure from e
        return await self._call(what, work, limiter)

    @property
    def _key(self) -> str | None:
        """The account key that signs requests; None with a SAS."""
        return getattr(self._service.credential, "account_key", None)

    def _has_other_key(self, refused: str | None) -> bool:
        """Use the account's current key from now on; return False if that is the refused one, or cannot be read."""
        if refused is None or self._current_key is None:
            return False
        try:
            key = self._current_key()
        except (RigError, OSError):
            return False
        if key != self._key:
            self._service.credential.account_key = key  # all clients of the service share this object
        return key != refused


def _blobs(container: ContainerClient, prefix: str) -> list[tuple[str, int]]:
    """Return names and sizes, in bytes, of the blobs with this prefix."""
    return [(blob.name, int(blob.size or 0)) for blob in container.list_blobs(name_starts_with=prefix)]


def _blobs_like_parts(container: ContainerClient, disk_id: str) -> list[tuple[str, int]]:
    """Return the blobs of a disk whose names begin like those of parts, by many lists instead of one.

    Azurite answers 500 to a list that contains a name which XML cannot hold, for example one with a control character.  If
    that was not the reason, the first list here fails at once.
    """
    generations: list[str] = []
    for digit in digits:
        found = container.walk_blobs(name_starts_with=f"{disk_id}/{digit}", delimiter="/")
        generations += [item.name for item in found if isinstance(item, BlobPrefix)]
    prefixes = [f"{name}{stream}/{digit}" for name in generations for stream in ("sync", "log") for digit in digits]
    return [blob for prefix in prefixes for blob in _blobs(container, prefix)]


KEY_ADVICE = "check whether its key was changed, and this host's clock; then siterig take-point makes the agent try again"


def classified(error: AzureError, *, what: str, where: str) -> RigError:
    """Return the error of the SDK as a ``RigError``: who can correct it, and whether waiting may help."""
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError):
        return _without_answer(error, what, where)
    code = _error_code(error) if isinstance(error, HttpResponseError) else type(error).__name__
    status = error.status_code if isinstance(error, HttpResponseError) else None
    answer = f"{status or ''} {code}".strip()
    if isinstance(error, ClientAuthenticationError) or status == 401 or _is_signature_refused(error):
        return RigError(
            Code.CacheAuthentication, f"cannot {what}: {where} does not accept the account key ({answer}): {KEY_ADVICE}"
        )
    if status == 403:
        return RigError(Code.CacheForbidden, f"cannot {what}: {where} forbids it ({answer}): check its firewall and rights")
    if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
        retry_after_s = _retry_after_s(error)
        asks = f", and asks to wait {retry_after_s:g} s" if retry_after_s else ""
        text = f"cannot {what}: {where} is busy or failing ({answer}){asks}"
        return RigError(Code.CacheUnreachable, text, recoverable=True, retry_after_s=retry_after_s)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        text = f"cannot {what}: {where} takes no body of this size ({answer}): check what limits requests on the way to it"
        return RigError(Code.CacheError, text)
    return RigError(Code.CacheError, f"cannot {what}: {where} refused it ({answer})")


def _without_answer(error: AzureError, what: str, where: str) -> RigError:
    if (refusal := refusal_of(error)) is not None:
        return RigError(Code.PeerRefused, f"cannot {what}: no TLS with {where}: {refusal}", recoverable=True)
    return RigError(Code.CacheUnreachable, f"cannot {what}: no answer from {where} ({_reason(error)})", recoverable=True)


def _retry_after_s(error: AzureError) -> float:
    """Return the seconds of the header ``Retry-After``; 0 without one, and for a date, which no storage service sends."""
    response = getattr(error, "response", None)
    text = str(response.headers.get("Retry-After", "")) if response is not None else ""
    return min(float(text), RETRY_AFTER_MAX_S) if text.isdecimal() else 0.0


def _is_signature_refused(error: AzureError) -> bool:
    # Azurite's code for a wrong key, AuthorizationFailure, is Azure's code for a firewall; only the text differs.
    return "Server failed to authenticate the request" in error.message


def _error_code(error: HttpResponseError) -> str:
    code: Any = getattr(error, "error_code", None)  # the SDK sets it on parsed answers, as an enum or a string
    return str(getattr(code, "value", code) or error.reason or "")


def _reason(error: AzureError) -> str:
    """Return the innermost cause, such as ``Connection refused``, in place of the names in the SDK, requests and urllib3."""
    cause: BaseException = error.inner_exception or error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def _fields(connection_string: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in connection_string.split(";"))


def _is_loopback(endpoint: str) -> bool:
    """Return True for an account on this host, which is never reached through a proxy of the environment."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
