"""The options of siterig protect that name offline seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.cli.commands.seeds import parse_seeds


def test_seeds_have_a_disk_an_absolute_path_and_a_format() -> None:
    here = Path.cwd()
    found = parse_seeds(["os=a.img", "data=/x=y.img", "./c=d.img"], ["vhd", "os=raw"])
    assert [(seed.disk, seed.image, seed.format) for seed in found] == [
        ("os", f"{here}/a.img", "raw"),
        ("data", "/x=y.img", "vhd"),
        (None, f"{here}/c=d.img", "vhd"),
    ]
    assert parse_seeds([], []) == []


@pytest.mark.parametrize(
    ("images", "formats", "message"),
    [
        (["os="], [], "--seed-from 'os=' is not understood: write IMAGE or NAME=IMAGE"),
        ([""], [], "--seed-from '' is not understood"),
        (["=a.img"], [], "--seed-from '=a.img' is not understood"),
        (["os=a.img"], ["zip"], "--seed-format 'zip': 'zip' is not one of raw, vhd"),
        (["os=a.img"], ["data=raw"], "there is no --seed-from data=IMAGE; named seeds: os"),
        ([], ["raw"], "there is no --seed-from"),
    ],
)
def test_a_wrong_option_is_named_with_the_allowed_values(images: list[str], formats: list[str], message: str) -> None:
    with pytest.raises(RigError) as caught:
        parse_seeds(images, formats)
    assert caught.value.code == "InvalidDisk"
    assert message in caught.value.message
