"""The settings of the pytest plugin: their order, their values, and the errors that name both."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.testing.settings import SEED_MAX, SETTINGS, Setting, TestingSettings


def of(**values: str) -> Callable[[Setting], tuple[str, object] | None]:
    """Return a source of settings that has these values as ini keys."""
    return lambda setting: (setting.ini, values[setting.name]) if setting.name in values else None


def test_the_defaults_of_the_table_are_those_of_the_class() -> None:
    found = TestingSettings.of(of(seed="0"))
    assert found == TestingSettings()


def test_an_argument_counts_before_the_settings_and_none_keeps_them() -> None:
    found = TestingSettings.of(of(size="1GiB", fs="xfs", seed="7")).but(size=8 << 20, fs=None, log=False)
    assert (found.size, found.fs, found.log, found.seed) == (8 << 20, "xfs", False, 7)


def test_a_random_seed_is_different_in_each_run() -> None:
    seeds = {TestingSettings.of(lambda _: None).seed for _ in range(8)}
    assert len(seeds) > 1
    assert max(seeds) <= SEED_MAX


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("keep", "sometimes", "siterig_keep: 'sometimes' is not allowed; allowed: never, failed, always"),
        ("fs", "ext3", "siterig_fs: 'ext3' is not allowed; allowed: ext4, xfs"),
        ("log", "maybe", "siterig_log: 'maybe' is not allowed; allowed: true, false"),
        ("seed", "-1", f"siterig_seed: '-1' is not allowed; allowed: a whole number from 0 to {SEED_MAX}"),
        ("timeout", "nan", "siterig_timeout: 'nan' is not allowed; allowed: a positive number of seconds"),
        ("interval", "0", "siterig_interval: '0' is not allowed; allowed: a positive number of seconds"),
        ("size", "big", "siterig_size: size 'big' is not understood: write a number and KiB, MiB, GiB or TiB"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(name: str, value: str, text: str) -> None:
    with pytest.raises(RigError) as caught:
        TestingSettings.of(of(**{name: value}))
    assert caught.value.message == text


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(RigError, match=r"^setup=: 3 is not allowed; allowed: a shell command, or in a factory") as caught:
        TestingSettings().but(setup=3)
    assert caught.value.code == Code.BadRequest


def test_each_setting_has_an_option_and_an_ini_key() -> None:
    assert [(each.option, each.ini) for each in SETTINGS][:2] == [
        ("--siterig-size", "siterig_size"),
        ("--siterig-fs", "siterig_fs"),
    ]
