"""The text that names a storage account: three forms are understood, and an error never quotes a secret."""

from __future__ import annotations

import random
import string

import pytest

from siterig.azure_emu.user_account.secret import AccountSecret, parse_secret
from siterig.azure_emu.user_account.stored_account import new_place
from siterig.blockfs.core.errors import RigError

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
SIG = "c2lnbmF0dXJlLXRoYXQtaXMtc2VjcmV0"
ACCOUNT_SAS = f"sv=2024-11-04&ss=b&srt=co&sp=rwdl&se=2030-01-01T00:00:00Z&spr=https&sig={SIG}"
CONTAINER_SAS = f"sv=2024-11-04&sr=c&sp=rcwdl&se=2030-01-01&sig={SIG}"
CLOUD = "https://acme1.blob.core.windows.net"


@pytest.mark.parametrize(
    ("text", "container", "found"),
    [
        (f"AccountName=acme1;AccountKey={KEY}", "", AccountSecret("key", "acme1", CLOUD, "", KEY)),
        (
            f"DefaultEndpointsProtocol=https;AccountName=acme1;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn",
            "parts",
            AccountSecret("key", "acme1", "https://acme1.blob.core.chinacloudapi.cn", "parts", KEY),
        ),
        (
            f"accountname=acme1;accountkey={KEY};blobendpoint=http://127.0.0.1:10000/acme1;QueueEndpoint=http://x/;",
            "",
            AccountSecret("key", "acme1", "http://127.0.0.1:10000/acme1", "", KEY),
        ),
        (
            f"BlobEndpoint={CLOUD}/;SharedAccessSignature=?{ACCOUNT_SAS}",
            "",
            AccountSecret("sas", "acme1", CLOUD, "", ACCOUNT_SAS),
        ),
        (f"{CLOUD}/?{ACCOUNT_SAS}\n", "", AccountSecret("sas", "acme1", CLOUD, "", ACCOUNT_SAS)),
        (f"{CLOUD}/parts?{CONTAINER_SAS}", "", AccountSecret("sas", "acme1", CLOUD, "parts", CONTAINER_SAS)),
        (f"{CLOUD}?{CONTAINER_SAS}", "parts", AccountSecret("sas", "acme1", CLOUD, "parts", CONTAINER_SAS)),
        ("https://[::1]:9/acme1/parts", "", AccountSecret("credential", "acme1", "https://[::1]:9/acme1", "parts", "")),
        (CLOUD, "", AccountSecret("credential", "acme1", CLOUD, "", "")),
    ],
)
def test_the_three_forms_are_understood(text: str, container: str, found: AccountSecret) -> None:
    assert parse_secret(text, container) == found
    assert KEY not in repr(found) and SIG not in repr(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("hello", "is not recognized"),
        (f"AccountName=acme1 AccountKey={KEY}", "has a space"),
        (f"AccountName=acme1;AccountKey={KEY}\nx", "a line break"),
        ("x" * 9000, "has 9000 characters; allowed: at most 8192"),
        (f"AccountName=acme1;AcountKey={KEY}", "unknown key 'AcountKey' (did you mean AccountKey?)"),
        (f"AccountName=acme1;{KEY}", "unknown key of part 2"),
        (f"AccountKey={KEY};x", "no = in part 2"),
        (f"AccountName=acme1;AccountName=acme1;AccountKey={KEY}", "has AccountName twice"),
        ("AccountName=acme1;AccountKey=", "no value of AccountKey"),
        ("AccountName=acme1;AccountKey=short", "not Base64"),
        (f"AccountKey={KEY}", "no AccountName"),
        ("AccountName=acme1", "neither of AccountKey and SharedAccessSignature"),
        (f"AccountName=a;AccountKey={KEY};SharedAccessSignature={ACCOUNT_SAS}", "both of AccountKey"),
        (f"SharedAccessSignature={ACCOUNT_SAS}", "neither BlobEndpoint nor AccountName"),
        (f"AccountName=A_B;AccountKey={KEY}", "no valid host"),
        (f"AccountName=acme1;AccountKey={KEY};BlobEndpoint=https://127.0.0.1/other", "no account as the first name"),
        (f"AccountName=acme1;AccountKey={KEY};BlobEndpoint=https://127.0.0.1", "no account as the first name"),
        (f"AccountName=acme1;AccountKey={KEY};BlobEndpoint={CLOUD}/parts", "a BlobEndpoint with a container"),
        (f"ftp://acme1.example.org?{ACCOUNT_SAS}", "the protocol 'ftp'"),
        (f"https://user:pass@acme1.example.org?{ACCOUNT_SAS}", "a user"),
        (f"https://acme1.example.org:99999?{ACCOUNT_SAS}", "no valid address"),
        (f"https://acme1.example.org/a/b?{CONTAINER_SAS}", "2 names after the account"),
        (f"{CLOUD}/-parts?{CONTAINER_SAS}", "the container '-parts'"),
        (f"{CLOUD}?{CONTAINER_SAS}", "for a container that is not named"),
        (f"{CLOUD}/parts?{CONTAINER_SAS.replace('sr=c', 'sr=b')}", "for one blob"),
        (f"{CLOUD}?{ACCOUNT_SAS.replace('ss=b', 'ss=q')}", "without the blob service"),
        (f"{CLOUD}?{ACCOUNT_SAS.replace('srt=co', 'srt=s')}", "without the resource types"),
        (f"{CLOUD}?{ACCOUNT_SAS.replace('sig=', 'sgi=')}", "no sig in the SAS"),
        (f"{CLOUD}?sp=r&{ACCOUNT_SAS}", "a field twice"),
        (f"{CLOUD}?{ACCOUNT_SAS.replace('2030-01-01T', 'soon')}", "no valid time in se"),
        (f"{CLOUD}?sv=1&sig={SIG}&sr=c", "neither se and sp"),
    ],
)
def test_an_error_names_the_wrong_part_and_no_secret(text: str, problem: str) -> None:
    with pytest.raises(RigError) as caught:
        parse_secret(text)
    assert problem in caught.value.message and caught.value.code == "BadAccountSecret"
    assert KEY not in caught.value.message and SIG not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "http://acme1.blob.core.windows.net?" + ACCOUNT_SAS,
        f"DefaultEndpointsProtocol=http;AccountName=acme1;AccountKey={KEY}",
        f"AccountName=acme1;AccountKey={KEY};BlobEndpoint=http://10.0.0.1/acme1",
        "http://127.0.0.1:10000/acme1",
    ],
)
def test_plain_http_is_for_loopback_and_never_for_tokens(text: str) -> None:
    with pytest.raises(RigError) as caught:
        parse_secret(text)
    assert caught.value.code == "HttpsRequired" and SIG not in caught.value.message


def test_two_containers_are_refused() -> None:
    with pytest.raises(RigError, match="names the container 'parts', and --account-container 'other'"):
        parse_secret(f"{CLOUD}/parts?{CONTAINER_SAS}", "other")


@pytest.mark.parametrize(
    ("permissions", "missing"), [("rwdl", []), ("racwdl", []), ("rl", ["write", "delete"]), ("wd", ["read", "list"])]
)
def test_missing_permissions_are_named(permissions: str, missing: list[str]) -> None:
    found = parse_secret(f"{CLOUD}?{ACCOUNT_SAS.replace('rwdl', permissions)}")
    assert found.missing_permissions() == missing
    assert found.expiry_ns == 1_893_456_000_000_000_000
    assert [found.is_expired(found.expiry_ns + delta) for delta in (-1, 0)] == [False, True]


def test_any_text_is_parsed_or_is_an_error_without_the_secret() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    texts = [f"AccountName=acme1;AccountKey={KEY};BlobEndpoint={CLOUD}", f"{CLOUD}/parts?{CONTAINER_SAS}", CLOUD]
    for _ in range(1000):
        text = list(draws.choice(texts))
        for _ in range(draws.randint(1, 4)):
            at = draws.randrange(len(text))
            text[at : at + draws.randrange(3)] = draws.choice(["", ";", "=", "&", "://", "?", *string.printable])
        try:
            found = parse_secret("".join(text))
        except RigError as error:
            assert error.code in ("BadAccountSecret", "HttpsRequired")
            assert SIG not in error.message and KEY not in error.message
        else:
            assert found.endpoint.startswith(("https://", "http://"))
            place = new_place(found)
            assert place.prefix.startswith("rig-") and place.secret.container
