"""Limits on the host's space that each disk of a rig may use, passed from ``siterig up`` to the disk hosts.

A disk host receives them as words of its command line, each with its value: ``--log-share-max=0.5``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, cast, get_args

from siterig.blockfs.contracts.shares import KEPT_SHARE_MAX, STORE_SHARE_MAX, WhenFull
from siterig.blockfs.core.errors import Code, RigError

if TYPE_CHECKING:
    from siterig.blockfs.changelog.disk_log import LogPolicy

LOG_SHARE_OPTION = "--log-share-max"
LOG_FULL_OPTION = "--when-log-full"
SNAPSHOT_SHARE_OPTION = "--snapshot-share-max"
OPTIONS = (LOG_SHARE_OPTION, LOG_FULL_OPTION, SNAPSHOT_SHARE_OPTION)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of each disk of a rig, as shares of its size: for the unsent log, and for old data of its snapshot."""

    log_share_max: float = KEPT_SHARE_MAX
    when_log_full: WhenFull = "refuse"
    snapshot_share_max: float = STORE_SHARE_MAX

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Limits:
        """Parse the value of each option.

        Raises:
            RigError: ``InvalidLimit`` names the option, its value and the allowed values.
        """
        when_log_full = options[LOG_FULL_OPTION]
        if when_log_full not in get_args(WhenFull):
            allowed = " or ".join(get_args(WhenFull))
            raise RigError(Code.InvalidLimit, f"{LOG_FULL_OPTION} is {when_log_full!r}: it must be {allowed}")
        return cls(
            log_share_max=_share(LOG_SHARE_OPTION, options),
            when_log_full=cast(WhenFull, when_log_full),
            snapshot_share_max=_share(SNAPSHOT_SHARE_OPTION, options),
        )

    @property
    def log_policy(self) -> LogPolicy:
        """The policy of change logs that follows from the limits."""
        from siterig.blockfs.changelog.disk_log import LogPolicy  # noqa: PLC0415 (the command line does without it)

        return LogPolicy(kept_share_max=self.log_share_max, when_full=self.when_log_full)

    def words(self) -> list[str]:
        """Return the limits as words of a command line, which :meth:`of_words` parses."""
        values = (self.log_share_max, self.when_log_full, self.snapshot_share_max)
        return [f"{option}={value}" for option, value in zip(OPTIONS, values, strict=True)]

    @classmethod
    def of_words(cls, words: Iterable[str]) -> Limits:
        """Parse the limits from a command line that has all of them, and other words."""
        return cls.parse(
            {option: value for option, _, value in (word.partition("=") for word in words) if option in OPTIONS}
        )


def _share(option: str, options: Mapping[str, str]) -> float:
    try:
        share = float(options[option])
    except ValueError:
        share = nan
    if not 0 < share <= 1:  # nor is nan
        raise RigError(
            Code.InvalidLimit, f"{option} is {options[option]!r}: it must be a share of the disk, above 0 and at most 1"
        )
    return share
