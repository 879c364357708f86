"""The values of fault rules: how TOML, the command line and Python write them, and what they are inside.

Inside a size is bytes and a duration nanoseconds; both are written as text with a unit, and so is what a rule is saved as.
A validator raises ``ValueError`` with the value and the allowed form.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from siterig.blockfs.documents import quantities
from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.moment_names import require_event

TriggerKind = Literal["event", "mark", "position", "time", "fault"]
TRIGGER_KINDS: tuple[TriggerKind, ...] = get_args(TriggerKind)
COUNT_MAX = (1 << 63) - 1


def _text_or(kind: type, read: Callable[[str], Any], form: str) -> BeforeValidator:
    """Return a validator that reads text, and takes values of ``kind`` as they are."""

    def validate(value: object) -> Any:
        if isinstance(value, str):
            return read(value)
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
        raise ValueError(f"{value!r} is not understood: write {form}")

    return BeforeValidator(validate)


def _quantity(read: Callable[[str], int], write: Callable[[int], str], form: str) -> tuple[BeforeValidator, PlainSerializer]:
    def validate(value: object) -> int:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit: write it as a text {form}")  # noqa: TRY004 (pydantic expects it)
        return read(value)

    return BeforeValidator(validate), PlainSerializer(write, return_type=str)


def _count(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and not _is_number(value)):
        raise ValueError(f"{value!r} is not understood: write a whole number")
    return int(value)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,19}", text) is not None


def _size(text: str) -> int:
    return quantities.parse_bytes(text)


def _names(value: object) -> object:
    """Split ``write,flush`` as the command line has it."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


def _numbers(value: object) -> object:
    return _names(value) if isinstance(value, str) else [value] if isinstance(value, int) else value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has characters that cannot be printed")
    return text


Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_printable)]
"""A text of printable characters: a name, or a pattern with ``*``, ``?`` and ``[...]``."""
Size = Annotated[
    int,
    _text_or(int, _size, "bytes or a text like 64KiB"),
    Field(ge=0, le=COUNT_MAX),
    PlainSerializer(quantities.bytes_text, return_type=str),
]
Duration = Annotated[int, *_quantity(quantities.parse_duration, quantities.duration_text, "like 40ms")]
Rate = Annotated[int, *_quantity(quantities.parse_rate, quantities.rate_text, "like 2MiB/s")]
ByteShift = Annotated[int, *_quantity(quantities.parse_byte_shift, quantities.byte_shift_text, "like +8KiB")]
TimeShift = Annotated[int, *_quantity(quantities.parse_time_shift, quantities.time_shift_text, "like +1h")]
Drift = Annotated[int, *_quantity(quantities.parse_drift, quantities.drift_text, "like +200ppm")]
Count = Annotated[int, BeforeValidator(_count), Field(ge=0, le=COUNT_MAX)]
CountFrom1 = Annotated[int, BeforeValidator(_count), Field(ge=1, le=COUNT_MAX)]
Names = Annotated[
    tuple[Text, ...],
    BeforeValidator(_names),
    Field(min_length=1),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names)),
]
Counts = Annotated[tuple[CountFrom1, ...], BeforeValidator(_numbers), PlainSerializer(list)]


def _survivors_tag(value: object) -> str:
    return "<random>" if value == "random" else "<numbers>"


Survivors = Annotated[
    Annotated[Counts, Tag("<numbers>")] | Annotated[Literal["random"], Tag("<random>")], Discriminator(_survivors_tag)
]
Sizes = Annotated[tuple[Size, ...], BeforeValidator(_numbers), PlainSerializer(list)]


# --- names of errors and signals -----------------------------------------------------------------------------------


def _errno(value: object) -> str:
    name = str(value).upper()
    if not name.startswith("E") or not isinstance(getattr(errno, name, None), int):
        raise ValueError(f"{value!r} is no errno{hint(name, errno.errorcode.values())}: write a name like EIO or ENOSPC")
    return name


def _signal(value: object) -> str:
    name = str(value).upper()
    if name.isdecimal():
        name = {str(int(known)): known.name for known in signal.Signals}.get(name, name)
    name = name if name.startswith("SIG") or name.isdecimal() else f"SIG{name}"
    if name not in signal.Signals.__members__ or name in ("SIGSTOP", "SIGCONT"):
        known = [known for known in signal.Signals.__members__ if known not in ("SIGSTOP", "SIGCONT")]
        raise ValueError(f"{value!r} is no signal that ends a process{hint(name, known)}: write a name like SIGKILL")
    return name


Errno = Annotated[str, BeforeValidator(_errno)]
SignalName = Annotated[str, BeforeValidator(_signal)]

STATUS_CODES = {
    400: "InvalidInput",
    403: "AuthenticationFailed",
    404: "BlobNotFound",
    409: "BlobAlreadyExists",
    412: "ConditionNotMet",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServerBusy",
}
"""The storage error code of a status that has no code in its rule (REST reference, "Common REST API error codes")."""


# --- triggers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FaultTrigger:
    """A moment: ``event:NAME``, ``mark:NAME``, ``position:N``, ``time:DURATION`` or ``fault:NAME``.

    Args:
        kind: what the moment depends on.
        name: the name of an event, a mark or a rule; empty for the other kinds.
        number: a position, or nanoseconds after the rule was armed; 0 for the other kinds.
    """

    kind: TriggerKind
    name: str = ""
    number: int = 0

    def __str__(self) -> str:
        if self.kind == "position":
            return f"position:{self.number}"
        return f"time:{quantities.duration_text(self.number)}" if self.kind == "time" else f"{self.kind}:{self.name}"


def parse_trigger(text: str) -> FaultTrigger:
    """Return the trigger that a text names; ``ValueError`` if it names none."""
    kind, colon, value = text.partition(":")
    if kind not in TRIGGER_KINDS or not colon or not value.strip() or not value.isprintable():
        forms = "event:NAME, mark:NAME, position:NUMBER, time:DURATION or fault:NAME"
        raise ValueError(
            f"{text!r} is no trigger{hint(kind, TRIGGER_KINDS) if kind not in TRIGGER_KINDS else ''}: write {forms}"
        )
    if kind == "time":
        return FaultTrigger("time", number=quantities.parse_duration(value))
    if kind == "position":
        if not re.fullmatch(r"\d{1,18}", value):
            raise ValueError(f"{text!r}: the position {value!r} is no whole number")
        return FaultTrigger("position", number=int(value))
    return FaultTrigger(kind, require_event(value) if kind == "event" else value)


Trigger = Annotated[
    FaultTrigger,
    _text_or(FaultTrigger, parse_trigger, "a text like event:NAME"),
    PlainSerializer(str, return_type=str),
]


# --- how often a rule must fire ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FiredRange:
    """The number of times that a rule must fire: ``least`` to ``most``; ``most`` None is no limit."""

    least: int = 1
    most: int | None = None

    def __contains__(self, fired: int) -> bool:
        return self.least <= fired and (self.most is None or fired <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f">={self.least}" if self.least else "any"
        if self.least == self.most:
            return f"=={self.least}"
        return f"{self.least}..{self.most}" if self.least else f"<={self.most}"


_FIRED = re.compile(r"(==|>=|<=|>|<|)\s*(\d{1,18})(?:\s*\.\.\s*(\d{1,18}))?")


def parse_fired(value: object) -> FiredRange:
    """Return the range of ``3``, ``==3``, ``>=1``, ``<=5``, ``2..5`` or ``any``; ``ValueError`` for other values."""
    if isinstance(value, FiredRange):
        return value
    text = str(value).strip()
    if text == "any":
        return FiredRange(0)
    match = _FIRED.fullmatch(text)
    if isinstance(value, bool) or match is None or (match[1] and match[3]):
        raise ValueError(f"{value!r} is not understood: write a number, ==N, >=N, <=N, N..M or any")
    sign, number = match[1], int(match[2])
    if match[3]:
        found = FiredRange(number, int(match[3]))
    elif sign in ("", "=="):
        found = FiredRange(number, number)
    elif sign in (">=", ">"):
        found = FiredRange(number + (sign == ">"))
    else:
        found = FiredRange(0, number - (sign == "<"))
    if found.most is not None and found.most < found.least:
        raise ValueError(f"{value!r} has no number in it: the first must not be above the second")
    return found


Fired = Annotated[FiredRange, BeforeValidator(parse_fired), PlainSerializer(str, return_type=str)]
