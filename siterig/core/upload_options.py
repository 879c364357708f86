"""Limits of the agent's uploads, passed from ``siterig up`` to the agent.

The agent receives them as words of its command line, each with its value: ``--uploads-per-vm=2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from siterig.blockfs.contracts.upload_limits import PER_HOST, PER_VM, UPLOADS_MAX, UploadLimits
from siterig.core.fuse_options import whole_number

PER_HOST_OPTION = "--uploads-per-host"
PER_VM_OPTION = "--uploads-per-vm"
OPTIONS = (PER_HOST_OPTION, PER_VM_OPTION)


def parse_upload_limits(options: Mapping[str, str]) -> UploadLimits:
    """Parse the value of each option.

    Raises:
        RigError: ``InvalidLimit`` names the option, its value and the allowed values.
    """
    return UploadLimits(
        per_host=whole_number(PER_HOST_OPTION, options, UPLOADS_MAX),
        per_vm=whole_number(PER_VM_OPTION, options, UPLOADS_MAX),
    )


def upload_words(limits: UploadLimits) -> list[str]:
    """Return the limits as words of a command line, which :func:`upload_limits_of` parses."""
    return [f"{PER_HOST_OPTION}={limits.per_host}", f"{PER_VM_OPTION}={limits.per_vm}"]


def upload_limits_of(words: Iterable[str]) -> UploadLimits:
    """Parse the limits from a command line that has them and other words; a missing one has its default."""
    given = {option: value for option, _, value in (word.partition("=") for word in words) if option in OPTIONS}
    return parse_upload_limits({PER_HOST_OPTION: str(PER_HOST), PER_VM_OPTION: str(PER_VM)} | given)
