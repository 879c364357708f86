"""``siterig clock``: the time of a rig, for all roles or for one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.light_commands import running
from siterig.core import clock_words

if TYPE_CHECKING:
    from siterig.blockfs.clocks.rig_clock_control import ClockState, RigClockControl

COLUMNS = ("role", "wall time", "skew", "drift", "change")
ClockRoleName = Annotated[
    str,
    typer.Argument(metavar="ROLE", help="Name of the role; siterig clock show lists them.", autocompletion=completion.roles),
]
Shift = Annotated[str, typer.Argument(metavar="SHIFT", help="Time with a sign: +1h, -30s.", show_default=False)]


class _ShiftCommand(TyperCommand):
    """A command with a time or speed, which may begin with ``-`` and is no option then."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words with the shifts at the end, after ``--``."""
        if "--" in args:
            return super().parse_args(ctx, args)
        shifts = [n for n, word in enumerate(args) if re.match(r"-\d", word) and args[n - 1 : n] != ["--drift"]]
        others = [word for n, word in enumerate(args) if n not in shifts]
        return super().parse_args(ctx, [*others, "--", *(args[n] for n in shifts)] if shifts else others)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    clock = typer.Typer(no_args_is_help=True)
    clock.command("show", epilog=example("siterig clock show"))(show)
    clock.command("advance", epilog=example("siterig clock advance 25h"), cls=_ShiftCommand)(advance)
    clock.command("rate", epilog=example("siterig clock rate 60"), cls=_ShiftCommand)(rate)
    clock.command("jump", epilog=example("siterig clock jump -1h"), cls=_ShiftCommand)(jump)
    skew_example = example("siterig clock skew agent +1h --drift +200ppm")
    clock.command("skew", epilog=skew_example, cls=_ShiftCommand)(skew)
    clock.command("reset", epilog=example("siterig clock reset"))(reset)
    app.add_typer(
        clock, name="clock", help="Show, move and bend the time of the rig.", epilog=example("siterig clock advance 25h")
    )


def _run(folder: Path, work: Callable[[RigClockControl], Awaitable[ClockState]], *, as_json: bool) -> None:
    async def change() -> ClockState:
        from siterig.blockfs.clocks.rig_clock_control import RigClockControl

        layout = running(folder)
        with RigClockControl(layout.clock, faults=layout.clock_faults) as control:
            return await work(control)

    _print(exit_status.run(change), as_json=as_json)


def _print(state: ClockState, *, as_json: bool) -> None:
    if as_json:
        output.print_json(state)
        return
    wall = _lead_text(state.wall_ahead_ns)
    output.line(f"wall time {state.wall_time} ({wall}), rate {state.rate:g}, change {state.change}")
    output.line(f"monotonic time {state.monotonic_ns / 1e9:.3f} s ({_lead_text(state.monotonic_ahead_ns)})")
    rows = [
        (
            role.role,
            role.wall_time,
            _shift_text(role.skew_ns),
            f"{role.drift_ppm:+} ppm" if role.drift_ppm else "-",
            role.change if role.running else "ended",
        )
        for role in state.roles
    ]
    output.print_table(COLUMNS, rows, empty="no role has run yet")


def _shift_text(shift_ns: int) -> str:
    return f"{shift_ns / 1e9:+.3f} s" if shift_ns else "-"


def _lead_text(lead_ns: int) -> str:
    if not lead_ns:
        return "the system's"
    return f"{abs(lead_ns) / 1e9:.3f} s {'ahead of' if lead_ns > 0 else 'behind'} the system's"


def show(folder: Dir, as_json: Json = False) -> None:
    """Show the time of the rig, and which role follows which change of it."""

    async def work(control: RigClockControl) -> ClockState:
        return control.state()

    _run(folder, work, as_json=as_json)


def advance(
    folder: Dir,
    by: Annotated[str, typer.Argument(metavar="TIME", help="Time that passes: 90s, 25h, 3d.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Move wall and monotonic time forward, and wake everything that is due, in the order of the times."""

    async def work(control: RigClockControl) -> ClockState:
        return await control.advance(clock_words.duration_ns("TIME", by))

    _run(folder, work, as_json=as_json)


def rate(
    folder: Dir,
    times: Annotated[
        float,
        typer.Argument(metavar="N", help="Speed; 1 is real time, 0 stands still, 1000 is the most."),
    ],
    as_json: Json = False,
) -> None:
    """Let wall and monotonic time run faster, slower, or not at all."""

    async def work(control: RigClockControl) -> ClockState:
        return await control.set_rate(clock_words.rate_ppm(times))

    _run(folder, work, as_json=as_json)


def jump(folder: Dir, by: Shift, as_json: Json = False) -> None:
    """Move wall time forward or back, as if it had been set; monotonic time is not moved, and nothing wakes."""

    async def work(control: RigClockControl) -> ClockState:
        return await control.jump(clock_words.shift_ns("SHIFT", by))

    _run(folder, work, as_json=as_json)


def skew(
    folder: Dir,
    role: ClockRoleName,
    by: Annotated[
        str, typer.Argument(metavar="SHIFT", help="Time with a sign: +1h, -30s; 0 ends the skew.", show_default=False)
    ],
    drift: Annotated[str | None, typer.Option("--drift", metavar="DRIFT", help="Growth of the skew: +200ppm, -1%.")] = None,
    as_json: Json = False,
) -> None:
    """Let the wall time of one role differ from that of the others."""

    async def work(control: RigClockControl) -> ClockState:
        clock_words.check_role(role, [each.role for each in control.state().roles])
        drift_ppm = clock_words.drift_ppm("--drift", drift)
        return await control.set_skew([role], clock_words.shift_ns("SHIFT", by), drift_ppm=drift_ppm)

    _run(folder, work, as_json=as_json)


def reset(folder: Dir, as_json: Json = False) -> None:
    """Return to the wall time and speed of the system; monotonic time keeps its lead, because it never goes back.

    Faults of the clock end, too: the removal of their rules moves nothing any more.
    """

    async def work(control: RigClockControl) -> ClockState:
        return await control.reset()

    _run(folder, work, as_json=as_json)
