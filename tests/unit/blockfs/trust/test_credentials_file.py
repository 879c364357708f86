"""A vault credentials file is read as it was written, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.authority.service import new_credentials
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.credentials_file import read_credentials
from tests.support.clocks import SettableClock


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("authority")
    return new_credentials(Authority(folder, SettableClock()), "site").decode("ascii")


def test_a_file_has_its_site_and_an_identity(good: str) -> None:
    site, identity = read_credentials(good, "it")
    assert site == "site"
    assert identity.count(b"-----BEGIN ") == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda each: st.lists(each, max_size=3), max_leaves=4
)


@given(st.sampled_from(["format", "kind", "site", "identity", "more"]), JSON)
def test_a_file_with_another_value_is_refused_by_key(good: str, key: str, value: object) -> None:
    fields = json.loads(good)
    if fields.get(key) == value:
        return
    fields[key] = value
    try:
        site, _ = read_credentials(json.dumps(fields), "the file it")
    except RigError as error:
        assert error.code == Code.BadCredentialsFile
        assert error.message.startswith("the file it is no vault credentials file: ")
    else:
        assert (key, site) == ("site", value)


@given(st.data())
def test_a_damaged_file_is_refused_or_has_the_same_blocks(good: str, data: st.DataObject) -> None:
    text = good
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        _, identity = read_credentials(text, "it")
    except RigError as error:
        assert error.code == Code.BadCredentialsFile
    else:
        assert identity.count(b"-----BEGIN ") == 3


def test_a_file_that_is_too_long_is_refused(good: str) -> None:
    with pytest.raises(RigError, match="has more than 131072 characters"):
        read_credentials(good + " " * 200_000, "it")
