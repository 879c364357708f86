"""Sizes, durations, rates and shifts as text: each kind is read and written in one place.

A text is a number and a unit: ``64KiB``, ``40ms``, ``2MiB/s``, ``+1h``.  Every reader raises ``ValueError`` with the value
and the allowed form.  Each ``..._text`` function writes the shortest text that reads as the same number.

Durations are nanoseconds, sizes bytes, rates bytes a second, drifts parts a million.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

_BYTE_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTE_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BYTE_NAMES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
_TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "min": 60 * 10**9}
_TIME_UNITS |= {"h": 3600 * 10**9, "d": 86400 * 10**9}
_TIME_NAMES = {name: _TIME_UNITS[name] for name in ("d", "h", "m", "s", "ms", "us", "ns")}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_MAX = (1 << 63) - 1
DURATION_MAX_NS = 3650 * 86400 * 10**9
"""The longest duration: ten years; sums and doubles of it still fit in 63 bits."""


def parse_bytes(text: str) -> int:
    """Return the bytes of ``64KiB``, ``1.5G`` or ``4096``."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(f"size {text!r} is not understood: write a number and KiB, MiB, GiB or TiB")
    return _whole(f"size {text!r}", Fraction(match[1]) * _BYTE_UNITS[match[2].upper()], "bytes", _MAX)


def is_bytes(text: str) -> bool:
    """Return True if a text has the form of a size."""
    match = _QUANTITY.fullmatch(text.strip())
    return match is not None and match[2].upper() in _BYTE_UNITS


def bytes_text(size_bytes: int) -> str:
    """Return the exact text of a size: ``64KiB``."""
    return _text(size_bytes, _BYTE_NAMES)


def parse_duration(text: str) -> int:
    """Return the nanoseconds of ``40ms``, ``1.5s`` or ``2h``."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in _TIME_UNITS:
        raise ValueError(f"duration {text!r} is not understood: write a number and ns, us, ms, s, m, h or d")
    return _whole(f"duration {text!r}", Fraction(match[1]) * _TIME_UNITS[match[2]], "nanoseconds", DURATION_MAX_NS)


def duration_text(duration_ns: int) -> str:
    """Return the exact text of a duration: ``40ms``."""
    return _text(duration_ns, _TIME_NAMES) if duration_ns else "0s"


def parse_rate(text: str) -> int:
    """Return the bytes a second of ``2MiB/s``; at least 1."""
    size, slash, unit = text.strip().partition("/")
    try:
        rate = parse_bytes(size) if slash and unit == "s" else 0
    except ValueError:
        rate = 0
    if not rate:
        raise ValueError(f"rate {text!r} is not understood: write a size above 0 and /s, like 2MiB/s")
    return rate


def rate_text(rate_bytes_s: int) -> str:
    """Return the exact text of a rate: ``2MiB/s``."""
    return f"{bytes_text(rate_bytes_s)}/s"


def parse_byte_shift(text: str) -> int:
    """Return the signed bytes of ``+8KiB`` or ``-512``; not 0."""
    sign, rest = _signed("shift", text, "like +8KiB or -512B")
    return sign * _not_zero("shift", text, parse_bytes(rest))


def byte_shift_text(shift_bytes: int) -> str:
    """Return the exact text of a shift of an offset: ``+8KiB``."""
    return ("-" if shift_bytes < 0 else "+") + bytes_text(abs(shift_bytes))


def parse_time_shift(text: str) -> int:
    """Return the signed nanoseconds of ``+1h`` or ``-30s``; not 0."""
    sign, rest = _signed("shift", text, "like +1h or -30s")
    return sign * _not_zero("shift", text, parse_duration(rest))


def time_shift_text(shift_ns: int) -> str:
    """Return the exact text of a shift of a clock: ``+1h``."""
    return ("-" if shift_ns < 0 else "+") + duration_text(abs(shift_ns))


def parse_drift(text: str) -> int:
    """Return the signed parts a million of ``+200ppm`` or ``-1%``; not 0, and above -1000000."""
    sign, rest = _signed("drift", text, "like +200ppm or -1%")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ppm|%)", rest)
    if match is None:
        raise ValueError(f"drift {text!r} is not understood: write a sign, a number and ppm or %, like +200ppm or -1%")
    drift = sign * _whole(f"drift {text!r}", Fraction(match[1]) * (1 if match[2] == "ppm" else 10_000), "ppm", 10**9)
    if drift <= -1_000_000:
        raise ValueError(f"drift {text!r} stops the clock or turns it back: it must be above -100%")
    return _not_zero("drift", text, drift)


def drift_text(drift_ppm: int) -> str:
    """Return the exact text of a drift: ``+200ppm``."""
    return f"{drift_ppm:+}ppm"


def _signed(kind: str, text: str, form: str) -> tuple[int, str]:
    stripped = text.strip()
    if stripped[:1] not in ("+", "-"):
        raise ValueError(f"{kind} {text!r} has no sign: write it {form}")
    return -1 if stripped[0] == "-" else 1, stripped[1:]


def _not_zero(kind: str, text: str, value: int) -> int:
    if not value:
        raise ValueError(f"{kind} {text!r} is 0: it must be another number")
    return value


def _whole(name: str, value: Fraction, unit: str, most: int) -> int:
    if value.denominator != 1:
        raise ValueError(f"{name} is no whole number of {unit}")
    if value > most:
        raise ValueError(f"{name} is {value} {unit}: at most {most} are allowed")
    return int(value)


def _text(value: int, units: Mapping[str, int]) -> str:
    name, size = next((name, size) for name, size in units.items() if value % size == 0 and (value or size == 1))
    return f"{value // size}{name}"
