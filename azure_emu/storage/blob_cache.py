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
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from string import digits
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from azure.core import MatchConditions
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

from siterig.azure_emu.storage.azurite import CONTAINER
from siterig.azure_emu.storage.link_transport import LinkTransport
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.bundle import FOLDER, BundleName
from siterig.blockfs.transfer.cache_account import AccountBlob, AccountListing, BlobAccount
from siterig.blockfs.transfer.codec import BLOB_BYTES_MAX
from siterig.blockfs.transfer.part_name import Listing
from siterig.blockfs.trust.peer import refusal_of

IN_FLIGHT_MAX = 2
"""Limit of concurrent calls; more make Azurite slower."""
CONNECT_TIMEOUT_S = 5.0
RECEIVED_BYTES = 256 << 10
"""The bytes of an answer that are taken at once; with the SDK's 4 KiB a download takes nearly twice the time."""
READ_TIMEOUT_S = 60.0
"""The limit between two packets of an answer, not for the whole answer."""
GET_TIMEOUT_S = 20.0
"""The same limit for the bytes of a part; a blob that cannot be read should be repaired within a minute."""
SINGLE_PUT_BYTES_MAX = 256 << 20
"""Above this size the SDK sends blocks and commits them under the same condition."""

NEEDED = "read, write, delete, list"
"""The permissions that replication needs; write includes create, and append blobs (add) are not used."""
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
_Sizes = list[tuple[str, int]]
"""Names of blobs with their sizes in bytes."""

logging.getLogger("azure").setLevel(logging.ERROR)  # it logs each request at INFO, and a body that ends early at WARNING
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns about each refused connection, and the error reports that


KEY_ADVICE = "check whether its key was changed, and this host's clock; then siterig take-point makes the agent try again"
NOT_PERMITTED = ("AuthorizationPermissionMismatch", "AuthorizationResourceTypeMismatch", "AuthorizationServiceMismatch")
"""The answers of the service to an operation that a SAS or a role does not permit."""


@dataclass(frozen=True, slots=True)
class AccountPlace:
    """The place of a rig in an account, and words for messages.

    Attributes:
        container: the container.
        prefix: begins the names of all blobs; no other blob is read, written or deleted.
        proof: the secret in words.
        advice: the end of the error of a secret that the account does not accept.
        creates: a missing container is created.
        credential: gives tokens, in place of a key or a SAS; an object of azure.core's TokenCredential.
    """

    container: str = CONTAINER
    prefix: str = ""
    proof: str = "the account key"
    advice: str = KEY_ADVICE
    creates: bool = True
    credential: Any = None


class BlobCacheAccount(BlobAccount):
    """Parts as block blobs named ``PartName.blob()`` in the container ``asr-cache``, or in another place.

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
        link_tls: ssl.SSLContext | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
        current_key: Callable[[], str] | None = None,
        place: AccountPlace = AccountPlace(),
    ) -> None:
        """Parse the connection string; the first call contacts the account.

        Args:
            connection_string: holds the key, so it must not be logged.
            folder: the folder in which an emulator on this host keeps its blobs.  An emulator whose disk is full returns the
                same error as a broken one; the free space of this folder decides which of the two it is.
            link: the socket of the proxy between this process and the account; requests use it while it exists.
            tls: settings for an account whose certificate is not of an authority that the system trusts.
            link_tls: settings for the proxy, if they are others.
            in_flight_max: limit of concurrent calls.
            place: the place of the blobs in the account.
            current_key: reads the key that clients of the account use now; called when the account refuses a key, so that a
                rotation interrupts nothing.  Any error of it is that of the request.
        Raises:
            RigError: ``BadConnectionString``.
        """
        self._folder, self._place = folder, place
        self._current_key = current_key
        self._limiter = trio.CapacityLimiter(in_flight_max)
        self._suspects = trio.CapacityLimiter(1)
        self._unreadable: set[AccountBlob] = set()
        fields = _fields(connection_string)
        options: dict[str, Any] = {
            "connection_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "connection_data_block_size": RECEIVED_BYTES,
            "use_env_settings": not _is_loopback(fields.get("BlobEndpoint", "")),
        }
        if link is not None or tls is not None:
            options = {"transport": LinkTransport(link, tls, link_tls, **options)}
        if place.credential is not None:
            options["credential"] = place.credential
        try:
            if not (
                fields.get("AccountKey") or fields.get("SharedAccessSignature") or place.credential
            ):  # the SDK would continue anonymously
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
        self._container = self._service.get_container_client(place.container)
        self._where = f"cache storage account {self._service.account_name} at {urlsplit(self._service.url).netloc}"

    async def ensure_container(self) -> None:
        """Create the container if it does not exist."""
        await self._call(f"create container {self._place.container}", self._create_container)

    async def delete_container(self) -> None:
        """Delete the container with all its parts; no-op if there is none.

        In a container that the rig shares with others, the blobs of the rig are deleted.
        """

        def work() -> None:
            try:
                self._container.delete_container()
            except ResourceNotFoundError:
                return

        if self._place.prefix:
            await self.remove_blobs()
        else:
            await self._call(f"delete container {self._place.container}", work)

    async def remove_blobs(self) -> int:
        """Delete all blobs of this place, and return their number."""

        def names() -> list[str]:
            try:
                return [name for name, _ in _blobs(self._container, self._place.prefix)]
            except ResourceNotFoundError:
                return []

        def remove(name: str) -> bool:
            try:
                self._container.delete_blob(name, delete_snapshots="include")
            except ResourceNotFoundError:
                return False
            return True

        removed = 0
        for name in await self._call(f"list the blobs {self._place.prefix}*", names):
            removed += await self._call(f"delete {name}", partial(remove, name))
        return removed

    async def check(self) -> None:
        """Check that the account can be used for replication; only a container that is missing is made.

        Raises:
            RigError: ``AccountPermissionMissing`` names the operations that are not permitted; ``ContainerMissing``.
        """
        if self._place.creates:
            try:
                await self.ensure_container()
            except RigError as error:
                if error.code != Code.CacheForbidden:
                    raise
        name = f"{self._place.prefix}check-of-permissions"
        blob = self._container.get_blob_client(name)

        def write() -> None:
            # The condition is never met, so nothing is written.
            condition = MatchConditions.IfNotModified
            blob.upload_blob(b"", overwrite=True, etag='"0x1"', match_condition=condition)

        trials: dict[str, Callable[[], object]] = {
            "list": lambda: next(iter(self._container.list_blobs(name_starts_with=name, results_per_page=1)), None),
            "read": lambda: blob.download_blob().readall(),
            "write": write,
            "delete": blob.delete_blob,
        }
        missing = [word for word, trial in trials.items() if not await self._permits(word, trial)]
        if missing:
            text = f"{self._where}: {self._place.proof} does not permit to {', '.join(missing)}"
            raise RigError(Code.AccountPermissionMissing, f"{text}; needed in container {self._place.container}: {NEEDED}")

    async def _permits(self, word: str, trial: Callable[[], object]) -> bool:
        """Return False if the account does not permit an operation; True also if it fails because there is no such blob."""

        def work() -> bool:
            try:
                trial()
            except HttpResponseError as e:
                if _error_code(e) == "ContainerNotFound":
                    raise self._container_missing() from e
                if _error_code(e) in NOT_PERMITTED:
                    return False
                if e.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED):
                    raise
            return True

        return await self._call(f"{word} in container {self._place.container}", work)

    def _container_missing(self) -> RigError:
        text = f"there is no container {self._place.container!r} in {self._where}"
        return RigError(Code.ContainerMissing, f"{text}, and {self._place.proof} does not permit to create it")

    async def put(self, part: AccountBlob, data: bytes, *, replace: bool = False) -> bool:
        """Upload a part once, or in any case with ``replace``; return False if the blob exists, which is success, too."""

        def upload() -> bool:
            try:
                self._container.upload_blob(self._name(part), data, overwrite=replace)
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
                return self._blobs(f"{disk_id}/")
            except HttpResponseError as e:
                if e.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                return [*self._blobs_like_parts(disk_id), (f"{disk_id}/{UNLISTED}", 0)]

        return Listing.of(disk_id, await self._call(f"list {disk_id}/", lambda: self._in_container(blobs)))

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        """Return the blobs of several disks, with one list of the container; one disk is listed by itself.

        If a name in the container makes that list fail, each disk is listed by itself.
        """
        found = await self._list_container() if len(disk_ids) > 1 else None
        if found is None:
            return await super().list_all(disk_ids)
        return _by_disk(disk_ids, found)

    async def list_with_bundles(self, disk_ids: Sequence[str]) -> AccountListing:
        """Return the blobs of several disks and the bundles, with one list of the container.

        If a name in the container makes that list fail, each disk is listed by itself.
        """
        found = await self._list_container()
        if found is None:
            disks = await super().list_all(disk_ids)
            found = await self._call(f"list {FOLDER}/", lambda: self._in_container(lambda: self._blobs(f"{FOLDER}/")))
        else:
            disks = _by_disk(disk_ids, found)
        bundles = ((BundleName.parse(name), size) for name, size in found)
        return AccountListing(disks, {name: size for name, size in bundles if name is not None})

    async def _list_container(self) -> _Sizes | None:
        """Return all blobs; None if a name among them cannot be listed."""

        def blobs() -> _Sizes | None:
            try:
                return self._blobs("")
            except HttpResponseError as e:
                if e.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                return None

        return await self._call(f"list container {self._place.container}", lambda: self._in_container(blobs))

    async def get(self, part: AccountBlob) -> bytes:
        """Return the bytes of a part.

        Parts that are known to be unreadable are read one at a time, so that they do not delay the others.

        Raises:
            RigError: ``PartNotFound``; ``PartCorrupt`` if the blob is too long for a part; ``PartUnreadable`` (recoverable)
                if this blob cannot be read while the account answers other requests.
        """

        def download() -> bytes:
            try:
                blob = self._container.download_blob(self._name(part), read_timeout=GET_TIMEOUT_S)
                if blob.size > BLOB_BYTES_MAX:
                    raise RigError(
                        Code.PartCorrupt,
                        f"part {part.blob()}: blob of {blob.size} bytes; a part has at most {BLOB_BYTES_MAX}",
                    )
                return blob.readall()
            except ResourceNotFoundError:
                raise RigError(
                    Code.PartNotFound, f"{part.blob()} is not in container {self._place.container} of {self._where}"
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

        def look() -> None:
            if not self._place.prefix:
                self._container.get_container_properties()
                return
            # A SAS of a container does not permit to read the properties of the container.
            next(iter(self._container.list_blobs(name_starts_with=self._place.prefix, results_per_page=1)), None)

        try:
            await self._call(f"look at container {self._place.container}", look)
        except RigError:
            return False
        return True

    async def delete(self, part: AccountBlob) -> None:
        """Delete the blob of a part; no-op if there is none."""

        def work() -> None:
            try:
                self._container.delete_blob(self._name(part))
            except ResourceNotFoundError:
                return

        await self._call(f"delete {part.blob()}", work)
        self._unreadable.discard(part)

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def _name(self, part: AccountBlob) -> str:
        """Return the name of a part's blob in the container."""
        return f"{self._place.prefix}{part.blob()}"

    def _create_container(self) -> None:
        if not self._place.creates:
            raise self._container_missing()
        try:
            self._container.create_container()
        except ResourceExistsError as e:
            if _error_code(e) != "ContainerAlreadyExists":  # the container may be in deletion, which is no success
                raise

    def _blobs(self, start: str) -> _Sizes:
        """Return names, without the prefix, and sizes of the rig's blobs whose names begin with ``start``."""
        prefix = self._place.prefix
        return [(name.removeprefix(prefix), size) for name, size in _blobs(self._container, f"{prefix}{start}")]

    def _blobs_like_parts(self, disk_id: str) -> _Sizes:
        """Return the blobs of a disk whose names begin like those of parts, by many lists instead of one.

        Azurite answers 500 to a list that contains a name which XML cannot hold, for example one with a control character.
        If that was not the reason, the first list here fails at once.
        """
        prefix = self._place.prefix
        generations: list[str] = []
        for digit in digits:
            found = self._container.walk_blobs(name_starts_with=f"{prefix}{disk_id}/{digit}", delimiter="/")
            generations += [item.name.removeprefix(prefix) for item in found if isinstance(item, BlobPrefix)]
        starts = [f"{name}{stream}/{digit}" for name in generations for stream in ("sync", "log") for digit in digits]
        return [blob for start in starts for blob in self._blobs(start)]

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
            failure = classified(e, what=what, where=self._where, proof=self._place.proof, advice=self._place.advice)
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


def _by_disk(disk_ids: Sequence[str], blobs: _Sizes) -> dict[str, Listing]:
    own: dict[str, _Sizes] = {disk_id: [] for disk_id in disk_ids}
    for name, size_bytes in blobs:
        if (disk := own.get(name.partition("/")[0])) is not None:
            disk.append((name, size_bytes))
    return {disk_id: Listing.of(disk_id, disk) for disk_id, disk in own.items()}


def classified(
    error: AzureError, *, what: str, where: str, proof: str = "the account key", advice: str = KEY_ADVICE
) -> RigError:
    """Return the error of the SDK as a ``RigError``: who can correct it, and whether waiting may help.

    Args:
        error: the error.
        what: the request, for the message.
        where: the account, for the message.
        proof: the secret in words.
        advice: the end of the message if the secret is not accepted.
    """
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError):
        return _without_answer(error, what, where)
    code = _error_code(error) if isinstance(error, HttpResponseError) else type(error).__name__
    status = error.status_code if isinstance(error, HttpResponseError) else None
    answer = f"{status or ''} {code}".strip()
    if isinstance(error, ClientAuthenticationError) or status == 401 or _is_signature_refused(error):
        return RigError(Code.CacheAuthentication, f"cannot {what}: {where} does not accept {proof} ({answer}): {advice}")
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
