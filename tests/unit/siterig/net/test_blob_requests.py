"""Tests of the operation, container and blob of a request, against the requests of the Azure SDK's documentation."""

from __future__ import annotations

import pytest

from siterig.net.blob_requests import ACKNOWLEDGED, OPERATIONS, BlobRequest, parse_request

ACCOUNT = "/devstoreaccount1"


def parsed(method: str, target: str, account_path: str = ACCOUNT, **headers: str) -> BlobRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_request(7, method, target, named, account_path)


@pytest.mark.parametrize(
    ("method", "rest", "operation"),
    [
        ("GET", "?comp=list", "ListContainers"),
        ("GET", "/?comp=list&prefix=a", "ListContainers"),
        ("PUT", "?restype=service&comp=properties", "SetBlobServiceProperties"),
        ("GET", "/c?restype=account&comp=properties", "GetAccountInformation"),
        ("POST", "/?comp=batch", "BlobBatch"),
        ("PUT", "/c?restype=container", "CreateContainer"),
        ("HEAD", "/c?restype=container", "GetContainerProperties"),
        ("GET", "/c?restype=container", "GetContainerProperties"),
        ("DELETE", "/c?restype=container&timeout=30", "DeleteContainer"),
        ("GET", "/c?restype=container&comp=list", "ListBlobs"),
        ("PUT", "/c?comp=lease&restype=container", "LeaseContainer"),
        ("PUT", "/c/b", "PutBlob"),
        ("GET", "/c/b?snapshot=2026", "GetBlob"),
        ("HEAD", "/c/b", "GetBlobProperties"),
        ("DELETE", "/c/b", "DeleteBlob"),
        ("PUT", "/c/b?comp=block&blockid=QQ==", "PutBlock"),
        ("PUT", "/c/b?comp=blocklist", "PutBlockList"),
        ("GET", "/c/b?comp=blocklist&blocklisttype=all", "GetBlockList"),
        ("PUT", "/c/b?comp=page", "PutPage"),
        ("PUT", "/c/b?comp=metadata", "SetBlobMetadata"),
        ("PUT", "/c/b?comp=lease", "LeaseBlob"),
        ("POST", "/c/b", "Unknown"),
        ("PUT", "/c/b?comp=new-one", "Unknown"),
    ],
)
def test_the_operation_is_that_of_method_path_and_query(method: str, rest: str, operation: str) -> None:
    assert parsed(method, ACCOUNT + rest).operation == operation
    assert parsed(method, rest if rest.startswith("/") else f"/{rest}", "").operation == operation
    assert operation in OPERATIONS


def test_a_copy_is_known_by_its_headers() -> None:
    source = {"x_ms_copy_source": "http://127.0.0.1/a"}
    assert parsed("PUT", f"{ACCOUNT}/c/b", **source).operation == "CopyBlob"
    assert parsed("PUT", f"{ACCOUNT}/c/b", **source, x_ms_requires_sync="True").operation == "CopyBlobFromURL"
    assert parsed("PUT", f"{ACCOUNT}/c/b", **source, x_ms_blob_type="BlockBlob").operation == "PutBlobFromURL"
    assert parsed("PUT", f"{ACCOUNT}/c/b?comp=block", **source).operation == "PutBlockFromURL"


@pytest.mark.parametrize(
    ("target", "account_path", "path"),
    [
        (f"{ACCOUNT}/c/a%20b/c%2Bd.part", ACCOUNT, "c/a b/c+d.part"),
        (f"{ACCOUNT}-secondary/c/b", ACCOUNT, "c/b"),
        ("/c/b", "", "c/b"),
        (f"{ACCOUNT}/c?restype=container", ACCOUNT, "c"),
        (f"{ACCOUNT}/b", ACCOUNT, "$root/b"),
        (f"{ACCOUNT}/", ACCOUNT, ""),
        (f"{ACCOUNT}/c//b", ACCOUNT, "c//b"),
    ],
)
def test_container_and_blob_are_unquoted(target: str, account_path: str, path: str) -> None:
    assert parsed("GET", target, account_path).path == path


def test_length_and_id_come_from_the_headers() -> None:
    request = parsed("PUT", f"{ACCOUNT}/c/b", content_length="12", x_ms_client_request_id="id")
    assert (request.number, request.body_bytes, request.client_request_id) == (7, 12, "id")
    assert parsed("GET", f"{ACCOUNT}/c/b").body_bytes == 0
    assert parsed("PUT", f"{ACCOUNT}/c/b", transfer_encoding="chunked").body_bytes is None


def test_only_operations_of_the_table_can_be_lost() -> None:
    assert ACKNOWLEDGED.keys() < OPERATIONS
