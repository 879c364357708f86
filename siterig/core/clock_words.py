"""Times, shifts and speeds of a rig's clock as users write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from siterig.blockfs.core.errors import Code, RigError


def duration_ns(name: str, text: str) -> int:
    """Return the nanoseconds of ``25h``.

    Args:
        name: the name of the value in an error.
        text: the value.

    Raises:
        RigError: ``InvalidClock``, as all functions of this module.
    """
    from siterig.blockfs.documents.quantities import parse_duration  # noqa: PLC0415 (commands start without it)

    return _quantity(name, text, parse_duration)


def shift_ns(name: str, text: str) -> int:
    """Return the signed nanoseconds of ``+1h``, ``-30s`` or ``0``."""
    from siterig.blockfs.documents.quantities import parse_time_shift  # noqa: PLC0415 (commands start without it)

    return 0 if text == "0" else _quantity(name, text, parse_time_shift)


def drift_ppm(name: str, text: str | None) -> int:
    """Return the millionths of ``+200ppm`` or ``-1%``; 0 for None."""
    from siterig.blockfs.documents.quantities import parse_drift  # noqa: PLC0415 (commands start without it)

    return 0 if text is None else _quantity(name, text, parse_drift)


def rate_ppm(times: float) -> int:
    """Return the millionths of a speed; 1 is real time."""
    if not math.isfinite(times):
        raise RigError(Code.InvalidClock, f"rate: {times:g} is not allowed: allowed is 0 (time stands still) to 1000")
    return round(times * 1_000_000)


def check_role(role: str, known: Sequence[str]) -> None:
    """Check that a clock has this role.

    Raises:
        RigError: ``NoSuchRole`` names the nearest one.
    """
    from siterig.blockfs.documents.nearest import hint  # noqa: PLC0415 (commands start without it)

    if role not in known:
        raise RigError(Code.NoSuchRole, f"unknown role {role!r}{hint(role, known)}; there are: {', '.join(known)}")


def _quantity(name: str, text: str, parse: Callable[[str], int]) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise RigError(Code.InvalidClock, f"{name}: {error}") from None
