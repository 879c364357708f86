"""The commands ``siterig bandwidth``: the limit of the uploads of the site's host."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from siterig.blockfs.contracts.bandwidth import BYTES_S_MAX, BYTES_S_MIN, DAY_S, WEEKDAYS, BandwidthLimit, Weekday
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example, vault
from siterig.core.parsing import format_size, parse_rate

_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)


def register(app: typer.Typer) -> None:
    """Add ``bandwidth``."""
    bandwidth = typer.Typer(no_args_is_help=True)
    bandwidth.command("show", epilog=example("siterig bandwidth show"))(show)
    bandwidth.command("set", epilog=example("siterig bandwidth set 20MiB --work-limit 4MiB --work-hours 08:00-18:00"))(
        set_bandwidth
    )
    app.add_typer(
        bandwidth,
        name="bandwidth",
        help="Show and limit the rate of the site's uploads.",
        epilog=example("siterig bandwidth show"),
    )


def show(folder: Dir, as_json: Json = False) -> None:
    """Show the limit of the site's uploads."""

    async def work() -> None:
        _print(await vault(folder).bandwidth(), as_json=as_json)

    exit_status.run(work)


def set_bandwidth(
    folder: Dir,
    limit: Annotated[str, typer.Argument(metavar="RATE|none", help="Bytes a second, for example 20MiB; none: no limit.")],
    *,
    work_limit: Annotated[
        str | None,
        typer.Option("--work-limit", metavar="RATE|none", help="Bytes a second in work hours.", show_default="RATE"),
    ] = None,
    work_hours: Annotated[
        str, typer.Option("--work-hours", metavar="HH:MM-HH:MM", help="Work hours, in UTC; they may pass midnight.")
    ] = "09:00-18:00",
    work_days: Annotated[
        str, typer.Option("--work-days", metavar="DAYS", help="Days on which work hours begin: mon-fri, or sat,sun.")
    ] = "mon-fri",
    as_json: Json = False,
) -> None:
    """Limit the rate of the site's uploads, in work hours and outside them; the former limit is replaced."""

    async def work() -> None:
        other_bytes_s = _rate("RATE", limit)
        begin_s, end_s = _hours(work_hours)
        wanted = BandwidthLimit(
            work_days=_days(work_days),
            work_begin_s=begin_s,
            work_end_s=end_s,
            work_bytes_s=other_bytes_s if work_limit is None else _rate("--work-limit", work_limit),
            other_bytes_s=other_bytes_s,
        )
        api = vault(folder)
        unlimited = wanted.work_bytes_s is None and wanted.other_bytes_s is None
        await api.set_bandwidth(limit=None if unlimited else wanted)
        _print(await api.bandwidth(), as_json=as_json)

    exit_status.run(work)


def _rate(name: str, text: str) -> int | None:
    rate = parse_rate(name, text)
    if rate is not None and not BYTES_S_MIN <= rate <= BYTES_S_MAX:
        raise RigError(
            Code.InvalidLimit,
            f"{name}: {text!r} is not allowed; allowed: none, or {format_size(BYTES_S_MIN)} to {format_size(BYTES_S_MAX)} a "
            "second (siterig pause stops the uploads of a VM)",
        )
    return rate


def _print(limit: BandwidthLimit | None, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"limit": limit})
        return
    rows = []
    if limit is not None:
        hours = f"{_clock(limit.work_begin_s)}-{_clock(limit.work_end_s)} UTC, {','.join(limit.work_days)}"
        rows = [(hours, _text(limit.work_bytes_s), _text(limit.other_bytes_s))]
    output.print_table(("work hours", "in work hours", "outside"), rows, empty="no limit")


def _text(rate: int | None) -> str:
    return "no limit" if rate is None else f"{format_size(rate)}/s"


def _clock(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}"


def _hours(text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text)
    if match is not None:
        begin_h, begin_m, end_h, end_m = (int(group) for group in match.groups())
        begin_s, end_s = (begin_h * 60 + begin_m) * 60, (end_h * 60 + end_m) * 60
        if max(begin_m, end_m) < 60 and begin_s < DAY_S and end_s <= DAY_S and begin_s != end_s:
            return begin_s, end_s
    raise RigError(
        Code.InvalidLimit, f"--work-hours: {text!r} is not understood; allowed: two times of a day, for example 09:00-18:00"
    )


def _days(text: str) -> list[Weekday]:
    found: list[Weekday] = []
    for part in text.lower().split(","):
        first, dash, last = part.strip().partition("-")
        if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
            raise RigError(
                Code.InvalidLimit,
                f"--work-days: {part!r} is not understood; allowed: {', '.join(WEEKDAYS)}, and two of them with a dash",
            )
        begin, end = WEEKDAYS.index(first), WEEKDAYS.index(last if dash else first)
        found += [WEEKDAYS[day % 7] for day in range(begin, end + 1 if end >= begin else end + 8)]
    return [day for day in WEEKDAYS if day in found]
