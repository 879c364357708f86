"""The file with the account of a user, and the sources of its secret: private, complete, and an error without a secret."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from siterig.accounts.admission import replaced
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.source import read_authority, read_source
from siterig.azure_emu.user_account.stored_account import (
    _DOCUMENT,
    FILE_NAME,
    is_stored,
    load,
    new_place,
    parse_stored,
    stamp_of,
    store,
)
from siterig.blockfs.core.errors import RigError

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rwdl&se=2030-01-01T00:00:00Z&sig=c2lnbmF0dXJl"
TEXTS = (
    f"AccountName=acme1;AccountKey={KEY}",
    f"AccountName=acme1;AccountKey={KEY};BlobEndpoint=http://localhost:1/acme1",
    f"https://acme1.blob.core.windows.net/?{SAS}",
    "https://127.0.0.1:10000/acme1/parts",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stored_account_is_read_back_from_a_private_file(tmp_path: Path, text: str) -> None:
    user = new_place(parse_secret(text), "-----BEGIN CERTIFICATE-----\n")
    assert not is_stored(tmp_path) and stamp_of(tmp_path) is None
    store(tmp_path, user)
    assert load(tmp_path) == user and is_stored(tmp_path)
    first = stamp_of(tmp_path)
    store(tmp_path, user)
    assert stamp_of(tmp_path) != first
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps({"format": 1, **json.loads(path.read_text())["account"]}))
    assert load(tmp_path) == user, "a file of an older siterig"
    store(tmp_path, user)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 3}, "format: 3; allowed: 1 and 2"),
        ({"kind": "password"}, "kind"),
        ({"kind": "sas"}, "SAS"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "rig-../"}, "prefix"),
        ({"endpoint": "http://10.0.0.1"}, "https"),
        ({"endpoint": "https://other.blob.core.windows.net/x/y"}, "path"),
        ({"container": "A"}, "container"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_key(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    store(tmp_path, new_place(parse_secret(TEXTS[0])))
    path = tmp_path / FILE_NAME
    good = json.loads(path.read_text())["account"]
    newest = sealed(good) | change if "format" in change else sealed(good | change)
    for document in ({"format": 1, **good, **change}, newest):
        path.write_text(json.dumps(document))
        damaged(tmp_path, problem)
    path.write_text(json.dumps(sealed(good) | {"account": good | {"account": "acme2"}}))
    damaged(tmp_path, "checksum does not match")


def sealed(account: dict[str, object]) -> dict[str, object]:
    return json.loads(_DOCUMENT.encode(account))  # type: ignore[no-any-return]


def damaged(folder: Path, problem: str) -> None:
    with pytest.raises(RigError, match="is damaged") as caught:
        load(folder)
    assert caught.value.code == "BadAccountSecret" and problem in caught.value.message and KEY not in caught.value.message


def test_any_bytes_are_an_account_or_an_error(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    store(tmp_path, new_place(parse_secret(TEXTS[2])))
    good = (tmp_path / FILE_NAME).read_bytes()
    for _ in range(500):
        data = bytearray(good[: draws.randrange(1, len(good) + 1)] if draws.random() < 0.2 else good)
        for _ in range(draws.randint(1, 3)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        try:
            parse_stored(bytes(data))
        except ValueError as error:
            assert "c2lnbmF0dXJl" not in str(error)


def test_another_secret_is_for_the_same_account_and_place() -> None:
    user = new_place(parse_secret(TEXTS[0]))
    again = replaced(user, parse_secret("https://acme1.blob.core.windows.net/?" + SAS), None)
    assert (again.prefix, again.secret.container, again.secret.kind) == (user.prefix, "siterig", "sas")
    for other in ("https://acme2.blob.core.windows.net/?" + SAS, "https://acme1.blob.core.windows.net/parts?" + SAS):
        with pytest.raises(RigError, match="start a new rig") as caught:
            replaced(user, parse_secret(other), None)
        assert caught.value.code == "AccountFixed" and "c2lnbmF0dXJl" not in caught.value.message
    assert replaced(replace(user, authority="x"), user.secret, None).authority == "x"


def test_a_secret_comes_from_a_private_file_or_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text("the text\n")
    assert read_source(str(path)) == "the text\n"
    assert read_source("env:ACME", {"ACME": "x"}) == "x"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o700, 0o606])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text(KEY)
    path.chmod(mode)
    with pytest.raises(RigError, match=f"of mode {mode:04o}") as caught:
        read_source(str(path))
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("env:", "without a valid name"),
        ("env:A-B", "without a valid name"),
        ("env:MISSING", "MISSING, which is not set or empty"),
        ("env:EMPTY", "EMPTY, which is not set or empty"),
        ("/missing/file", "No such file"),
        ("/dev/null", "no regular file"),
        (f"AccountName=a;AccountKey={KEY}", "given as an argument"),
        (f"https://acme1.blob.core.windows.net/?{SAS}", "given as an argument"),
    ],
)
def test_a_source_without_a_secret_is_an_error_that_names_it(source: str, problem: str) -> None:
    with pytest.raises(RigError) as caught:
        read_source(source, {"EMPTY": ""})
    assert caught.value.code == "BadAccountSecret" and problem in caught.value.message
    assert KEY not in caught.value.message and "c2lnbmF0dXJl" not in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file of another user")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(RigError, match="belongs to uid 12345"):
        read_source(str(path))


def test_a_file_of_authorities_has_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    path.write_text(f"# mine\n{block}\n-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n{block}\n")
    assert read_authority(path) == f"{block}\n{block}\n"
    path.write_text("nothing")
    with pytest.raises(RigError, match="has no certificate"):
        read_authority(path)
