"""The beginning of an id identifies it, if no other id begins in the same way."""

from __future__ import annotations

import pytest

from siterig.blockfs.core import short_ids
from siterig.blockfs.core.errors import RigError

FIRST, SECOND = "0d2c7d1e-9f1b-4f3a-8a41-0f6f4c8f2b11", "0d2c7d1e-1111-4f3a-8a41-0f6f4c8f2b12"


@pytest.mark.parametrize("text", [FIRST, "0d2c7d1e-9", "0D2C7D1E-9", FIRST[:-1]])
def test_the_beginning_of_exactly_one_id_is_that_id(text: str) -> None:
    assert short_ids.find("point", text, [FIRST, SECOND]) == FIRST


def test_the_beginning_of_several_ids_is_an_error_that_lists_them() -> None:
    with pytest.raises(RigError) as caught:
        short_ids.find("point", "0d2c", [FIRST, SECOND])
    assert (caught.value.code, caught.value.message) == (
        "AmbiguousId",
        f"point '0d2c' is the beginning of 2 ids: {SECOND}, {FIRST}; give more characters",
    )


@pytest.mark.parametrize("text", ["", "0d2", "0d2c7d1f", "scheduled", "@12", FIRST + "1"])
def test_any_other_text_is_no_id(text: str) -> None:
    assert short_ids.find("point", text, [FIRST, SECOND, "@12"]) is None
