"""One request to a blob service: its operation, container and blob, as the service derives them.

Source: Azure Storage REST API, "Blob service REST API" (Microsoft Learn): method, path, and the query parameters ``restype``
and ``comp``.  Names of operations are those of its pages without spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote

Level = Literal["service", "container", "blob"]
UNKNOWN = "Unknown"
"""The operation of a request that the table does not have."""

_OPERATIONS: dict[Level, dict[str, dict[str, str]]] = {
    "service": {
        "": {"OPTIONS": "PreflightBlobRequest"},
        "list": {"GET": "ListContainers"},
        "properties": {"GET": "GetBlobServiceProperties", "PUT": "SetBlobServiceProperties"},
        "stats": {"GET": "GetBlobServiceStats"},
        "userdelegationkey": {"POST": "GetUserDelegationKey"},
        "batch": {"POST": "BlobBatch"},
        "blobs": {"GET": "FindBlobsByTags"},
    },
    "container": {
        "": {"GET": "GetContainerProperties", "PUT": "CreateContainer", "DELETE": "DeleteContainer"},
        "metadata": {"GET": "GetContainerMetadata", "PUT": "SetContainerMetadata"},
        "acl": {"GET": "GetContainerAcl", "PUT": "SetContainerAcl"},
        "lease": {"PUT": "LeaseContainer"},
        "undelete": {"PUT": "RestoreContainer"},
        "list": {"GET": "ListBlobs"},
        "blobs": {"GET": "FindBlobsByTagsInContainer"},
        "batch": {"POST": "BlobBatch"},
    },
    "blob": {
        "": {
            "GET": "GetBlob",
            "HEAD": "GetBlobProperties",
            "PUT": "PutBlob",
            "DELETE": "DeleteBlob",
            "OPTIONS": "PreflightBlobRequest",
        },
        "block": {"PUT": "PutBlock"},
        "blocklist": {"GET": "GetBlockList", "PUT": "PutBlockList"},
        "page": {"PUT": "PutPage"},
        "pagelist": {"GET": "GetPageRanges"},
        "appendblock": {"PUT": "AppendBlock"},
        "seal": {"PUT": "AppendBlobSeal"},
        "incrementalcopy": {"PUT": "IncrementalCopyBlob"},
        "copy": {"PUT": "AbortCopyBlob"},
        "snapshot": {"PUT": "SnapshotBlob"},
        "undelete": {"PUT": "UndeleteBlob"},
        "metadata": {"GET": "GetBlobMetadata", "HEAD": "GetBlobMetadata", "PUT": "SetBlobMetadata"},
        "properties": {"PUT": "SetBlobProperties"},
        "lease": {"PUT": "LeaseBlob"},
        "tier": {"PUT": "SetBlobTier"},
        "tags": {"GET": "GetBlobTags", "PUT": "SetBlobTags"},
        "expiry": {"PUT": "SetBlobExpiry"},
        "query": {"POST": "QueryBlobContents"},
        "immutabilityPolicies": {"PUT": "SetBlobImmutabilityPolicy", "DELETE": "DeleteBlobImmutabilityPolicy"},
        "legalhold": {"PUT": "SetBlobLegalHold"},
    },
}
_FROM_URL = {"PutBlock": "PutBlockFromURL", "PutPage": "PutPageFromURL", "AppendBlock": "AppendBlockFromURL"}
_COPIES = ("CopyBlob", "CopyBlobFromURL", "PutBlobFromURL", *_FROM_URL.values())

OPERATIONS = frozenset(name for level in _OPERATIONS.values() for methods in level.values() for name in methods.values()) | {
    *_COPIES,
    "GetAccountInformation",
    UNKNOWN,
}
"""All names of operations."""

ACKNOWLEDGED = {
    **dict.fromkeys(("CreateContainer", "PutBlob", "PutBlock", "PutBlockList", "PutPage"), 201),
    **dict.fromkeys(("DeleteContainer", "DeleteBlob"), 202),
    **dict.fromkeys(("SetContainerMetadata", "SetContainerAcl", "SetBlobMetadata", "SetBlobProperties"), 200),
    "SetBlobTags": 204,
}
"""Operations that can be acknowledged without having been carried out, with the status of their success."""


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A request to a blob service.

    ``container`` and ``blob`` are empty where the operation has none; ``body_bytes`` is None for a body of unknown length.
    """

    number: int
    """Requests are counted from 1, in the order in which their headers arrived."""
    operation: str
    container: str
    blob: str
    method: str
    target: str
    body_bytes: int | None
    client_request_id: str

    @property
    def path(self) -> str:
        """``CONTAINER/BLOB``, or ``CONTAINER``, or nothing."""
        return f"{self.container}/{self.blob}" if self.blob else self.container


def parse_request(number: int, method: str, target: str, headers: Mapping[str, str], account_path: str) -> BlobRequest:
    """Return the request of one HTTP message.

    Args:
        number: its number.
        method: the HTTP method.
        target: path and query, as sent.
        headers: the headers, with lower-case names.
        account_path: first part of each path, ``/ACCOUNT`` for an emulator; empty if the host's name has the account.
    """
    path, _, query_text = target.partition("?")  # not urlsplit: it refuses some paths, and takes //NAME for a host
    query = {name: values[0] for name, values in parse_qs(query_text).items()}
    level, container, blob = _place(path, query.get("restype", ""), account_path)
    length = "" if "transfer-encoding" in headers else headers.get("content-length", "0")
    return BlobRequest(
        number=number,
        operation=_operation(level, method, query, headers),
        container=container,
        blob=blob,
        method=method,
        target=target,
        body_bytes=int(length) if length.isdecimal() else None,
        client_request_id=headers.get("x-ms-client-request-id", ""),
    )


def _place(path: str, restype: str, account_path: str) -> tuple[Level, str, str]:
    for prefix in (f"{account_path}-secondary", account_path) if account_path else ("",):
        if path == prefix or path.startswith(f"{prefix}/"):
            path = path[len(prefix) :]
            break
    first, _, rest = path.lstrip("/").partition("/")
    container, blob = unquote(first), unquote(rest)
    if restype in ("service", "account") or not container:
        return "service", "", ""
    if blob:
        return "blob", container, blob
    return ("container", container, "") if restype == "container" else ("blob", "$root", container)


def _operation(level: Level, method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if query.get("restype") == "account":
        return "GetAccountInformation"
    methods = _OPERATIONS[level].get(query.get("comp", ""), {})
    name = methods.get(method) or (methods.get("GET") if method == "HEAD" and level == "container" else None) or UNKNOWN
    if "x-ms-copy-source" not in headers:
        return name
    if name == "PutBlob":
        if "x-ms-blob-type" in headers:
            return "PutBlobFromURL"
        return "CopyBlobFromURL" if headers.get("x-ms-requires-sync", "").lower() == "true" else "CopyBlob"
    return _FROM_URL.get(name, name)
