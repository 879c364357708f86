"""Change logs by themselves: show, verify, replay, and exchange with dm-log-writes.  No rig is needed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from siterig.blockfs.changelog.exchange import export_log, import_log
from siterig.blockfs.changelog.replay import (
    CheckedLog,
    FileSummary,
    Replay,
    TornTail,
    check,
    in_order,
    open_image,
    verify,
)
from siterig.blockfs.changelog.segment import FLAG_CLEAN_CLOSE, Record, RecordType, SegmentReader
from siterig.blockfs.changelog.tags import decode_tag
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.blockfs.files.file_limit import too_large
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_devices
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Json, JsonLines, example
from siterig.core.parsing import check_file_name, format_size, parse_size

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Segments (.hrl), in any order.")]
LogImageFormat = Annotated[
    Literal["raw", "vhd"] | None, typer.Option("--format", help="Format of IMAGE. Default: detected from contents and name.")
]
_WIDE = (8, 10, -27, -8, 14, 9, -1)  # the columns of a record with the whole time
_WIDE_CHARACTERS = 104  # with the name and the kind of a tag
_NARROW = (8, 10, -20, -8, 14, 9, -1)  # the time without its fraction of a second
RecordKind = Enum("RecordKind", {kind.name: kind.name.lower() for kind in RecordType}, type=str)  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    log = typer.Typer(no_args_is_help=True)
    log.command("show", epilog=example("siterig log show os.000001.hrl --type tag"))(show_log)
    log.command("verify", epilog=example("siterig log verify os.*.hrl"))(verify_log)
    log.command("replay", epilog=example("siterig log replay os.*.hrl --onto os.img"))(replay_log)
    log.command("export", epilog=example("siterig log export os.*.hrl --dm-log-writes os.dmlog"))(export_dm)
    log.command("import", epilog=example("siterig log import os.dmlog --onto-log ./os"))(import_dm)
    app.add_typer(log, name="log", help="Read change logs.", epilog=example("siterig log verify os.*.hrl"))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Report an ``OSError`` of the block with the file that it is about."""
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EFBIG:
            raise too_large(str(path)) from exc
        code = Code.DiskFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else Code.IoFailed
        raise RigError(code, f"{path}: cannot be written: {reason(exc, path)}") from exc


def _checked(files: list[Path], upto: int | None = None) -> CheckedLog:
    """Check the files as one log, and print remarks about it."""
    total_bytes = sum(file.size_bytes for file in in_order(files))
    with output.bar("checking", total_bytes) as advance:
        log = check(files, upto=upto, advance=advance)
    if log.torn is not None:
        output.notice(f"{log.torn.path}: {', '.join(_tail(log.torn))}, left out")
    if log.first_seq > 1:
        output.notice(f"the log begins with record {log.first_seq}: the image must be the disk as it was before that")
    if upto is not None and not log.files[-1].partial:
        output.notice(f"the log ends with position {log.files[-1].last_position}, before {upto}")
    return log


def _tail(summary: FileSummary) -> list[str]:
    """Describe the bytes after the last record of a segment."""
    tail = []
    if summary.torn_bytes:
        tail.append(f"torn tail of {summary.torn_bytes} bytes at byte {summary.end}")
    if summary.room_bytes:
        tail.append(f"{format_size(summary.room_bytes)} preallocated at its end")
    return tail


# --- show ---------------------------------------------------------------------------------------------------------


def show_log(
    files: Files,
    kinds: Annotated[
        list[RecordKind] | None, typer.Option("--type", help="Show only records of this type; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Show at most N records.")] = None,
    as_json: JsonLines = False,
) -> None:
    """Show the header and the records of each segment."""

    async def work() -> None:
        types = {RecordType[kind.name] for kind in kinds} if kinds else set(RecordType)
        records_left = limit
        for file in in_order(files):
            if file.fault is not None:
                raise file.fault
            if file.header is None:
                output.notice(
                    f"{file.path}: is a segment that is still being created; it holds no record ({file.size_bytes} bytes)"
                )
                continue
            with SegmentReader(file.path) as reader:
                _print_header(reader, as_json=as_json)
                tail = TornTail(reader)
                for record in tail.records():
                    if record.type in types:
                        if records_left == 0:
                            return
                        _print_record(reader, record, as_json=as_json)
                        records_left = None if records_left is None else records_left - 1
                if tail.torn_bytes:
                    end = file.size_bytes - tail.torn_bytes - tail.room_bytes
                    output.notice(f"{file.path}: torn tail of {tail.torn_bytes} bytes at byte {end}")

    exit_status.run(work)


def _print_header(reader: SegmentReader, *, as_json: bool) -> None:
    header = reader.header
    if as_json:
        fields = {
            "file": str(reader.path),
            "disk_id": header.disk_id,
            "generation": header.generation,
            "stream": header.stream,
            "first_seq": header.first_seq,
            "boot_id": header.boot_id,
            "created": rfc3339(header.created_ns),
            "disk_size_bytes": header.disk_size_bytes,
        }
        output.print_json_line({"segment": fields})
        return
    output.line(
        f"{reader.path}: disk {header.disk_id} ({format_size(header.disk_size_bytes)}), generation {header.generation}, "
        f"{header.stream} from {header.first_seq}, begun {rfc3339(header.created_ns)} in boot {header.boot_id}"
    )
    _print_row("seq", "position", "time", "type", "offset", "length", "tag")


def _print_record(reader: SegmentReader, record: Record, *, as_json: bool) -> None:
    tag = decode_tag(reader.payload(record)) if record.type is RecordType.TAG else None
    clean = record.type is RecordType.FLUSH and bool(record.flags & FLAG_CLEAN_CLOSE)
    if as_json:
        fields: dict[str, object] = {
            "seq": record.seq,
            "position": record.position,
            "time": rfc3339(record.time_ns),
            "type": record.type.name,
            "offset": record.offset,
            "length": record.length,
        }
        if tag is not None:
            fields["tag"] = {"id": tag.tag_id, "name": tag.name, "kind": tag.kind}
        if record.type is RecordType.FLUSH:
            fields["closed"] = clean
        output.print_json_line({"record": fields})
        return
    note = f"{tag.name} {tag.kind}" if tag is not None else "closed cleanly" if clean else ""
    when = rfc3339(record.time_ns)
    _print_row(record.seq, record.position, when, record.type.name, record.offset, record.length, note)


def _print_row(*cells: object) -> None:
    """Return the line of a record; its columns have fixed widths, because a record is printed when it is read."""
    output.row(cells, _WIDE if output.fits(_WIDE_CHARACTERS) else _NARROW)


# --- verify and replay --------------------------------------------------------------------------------------------


def verify_log(files: Files, as_json: JsonLines = False) -> None:
    """Check each record of the segments, and that they form one log without a gap; exit status 1 if not."""

    async def work() -> bool:
        total = _Total()
        for path, found in verify(files):
            total.add(found)
            if as_json:
                output.print_json_line(_verified_json(path, found))
            elif isinstance(found, RigError):
                output.line(f"{found.message} ({found.code})")
            else:
                output.line("; ".join([f"{path}: ok: {_contents(found)}", *_tail(found)]))
        if as_json:
            output.print_json_line({"total": asdict(total)})
        else:
            output.line(total.text)
        return total.bad_files == 0

    if not exit_status.run(work):
        raise typer.Exit(ExitStatus.FAILED)


@dataclass
class _Total:
    """Totals of all checked files, and positions of the good ones (0: no record)."""

    files: int = 0
    bad_files: int = 0
    records: int = 0
    first_position: int = 0
    last_position: int = 0
    written_bytes: int = 0
    torn_bytes: int = 0
    preallocated_bytes: int = 0

    def add(self, summary: FileSummary | RigError) -> None:
        """Add one file."""
        self.files += 1
        if isinstance(summary, RigError):
            self.bad_files += 1
            return
        if summary.records:
            self.first_position = self.first_position or summary.first_position
            self.last_position = max(self.last_position, summary.last_position)
        self.records += summary.records
        self.written_bytes += summary.written_bytes
        self.torn_bytes += summary.torn_bytes
        self.preallocated_bytes += summary.room_bytes

    @property
    def text(self) -> str:
        """One line."""
        bad = f", {self.bad_files} of them bad" if self.bad_files else ", all ok"
        held = f"{self.records} records"
        if self.records:
            held += f", positions {self.first_position} to {self.last_position}"
        torn = f", torn tail of {self.torn_bytes} bytes" if self.torn_bytes else ""
        return f"total: {self.files} files{bad}: {held}, {format_size(self.written_bytes)} written{torn}"


def _verified_json(path: Path, summary: FileSummary | RigError) -> dict[str, object]:
    if isinstance(summary, RigError):
        return {"file": str(path), "ok": False, "error": output.error_json(summary)}
    return {
        "file": str(path),
        "ok": True,
        "records": summary.records,
        "first_seq": summary.first_seq,
        "last_seq": summary.last_seq,
        "first_position": summary.first_position,
        "last_position": summary.last_position,
        "written_bytes": summary.written_bytes,
        "torn_bytes": summary.torn_bytes,
        "preallocated_bytes": summary.room_bytes,
    }


def _contents(summary: FileSummary) -> str:
    if not summary.records:
        return "no records"
    return (
        f"records {summary.first_seq} to {summary.last_seq}, positions {summary.first_position} to {summary.last_position}, "
        f"{format_size(summary.written_bytes)} written"
    )


def replay_log(
    files: Files,
    image: Annotated[
        Path,
        typer.Option(
            "--onto", metavar="IMAGE", help="The disk as it was before the log: a raw image, a VHD, a block device."
        ),
    ],
    upto: Annotated[
        int | None, typer.Option("--upto", metavar="POSITION", min=0, help="Leave out records after this position.")
    ] = None,
    format_: LogImageFormat = None,
    as_json: Json = False,
) -> None:
    """Apply a log to an image; the whole log is checked before the first write."""

    async def work() -> None:
        await _refuse_in_use(image)
        log = _checked(files, upto)
        onto = open_image(image, log, writable=True, format_=format_)
        try:
            replay = Replay(log, onto)
            try:
                with _writing(image), output.bar("applying", log.log_bytes) as advance:
                    replay.run(advance)
            except BaseException:
                output.notice(_partial(image, replay))
                raise
        finally:
            onto.close()
        if as_json:
            output.print_json(_applied_json(image, log, replay))
        else:
            output.line(f"{image}: {_applied(log, replay)}")

    exit_status.run(work)


async def _refuse_in_use(image: Path) -> None:
    for use in await loop_devices.uses(image) if image.exists() else []:
        holders = (use.loop, *use.mountpoints, *use.processes)
        raise RigError(Code.ImageBusy, f"{image}: is in use by {', '.join(holder for holder in holders if holder)}")


def _partial(image: Path, replay: Replay) -> str:
    last = replay.last
    upto = "nothing of the log" if last is None else f"the log up to record {last.seq}, position {last.position}"
    return f"{image} is partial: it holds {upto}, and perhaps part of what follows; the same replay completes it"


def _applied(log: CheckedLog, replay: Replay) -> str:
    last = replay.last
    if last is None:
        return "nothing to apply"
    counts = ", ".join(f"{replay.counts[kind]} {kind.name}" for kind in RecordType if replay.counts[kind])
    return f"applied records {log.first_seq} to {last.seq}, up to position {last.position}: {counts}"


def _applied_json(image: Path, log: CheckedLog, replay: Replay) -> dict[str, object]:
    last = replay.last
    return {
        "image": str(image),
        "first_seq": None if last is None else log.first_seq,
        "last_seq": None if last is None else last.seq,
        "position": None if last is None else last.position,
        "records": {kind.name: replay.counts[kind] for kind in RecordType if replay.counts[kind]},
    }


# --- dm-log-writes ------------------------------------------------------------------------------------------------


def export_dm(
    files: Files,
    out: Annotated[
        Path, typer.Option("--dm-log-writes", metavar="OUT", help="The dm-log-writes log to create, for replay-log.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="IMAGE",
            help="The disk as it was before the log; needed for records that do not fill whole sectors.",
        ),
    ] = None,
    format_: LogImageFormat = None,
    as_json: Json = False,
) -> None:
    """Write a log in the format of the Linux device mapper's log-writes target."""

    async def work() -> None:
        log = _checked(files)
        with _writing(out), output.bar("exporting", log.log_bytes) as advance:
            done = export_log(log, out, base=base, format_=format_, advance=advance)
        if done.widened:
            output.notice(f"{done.widened} records were widened to whole sectors")
        if done.resizes:
            output.notice(
                f"RESIZE has no counterpart ({done.resizes} left out): replay onto an image of the disk's last size"
            )
        if as_json:
            counts = {"records": done.records, "entries": done.entries, "widened": done.widened, "resizes": done.resizes}
            output.print_json({"file": str(out), **counts, "disk_size_bytes": done.disk_size_bytes})
        else:
            output.line(f"{out}: records: {done.records}; entries: {done.entries}; disk: {done.disk_size_bytes} bytes")

    exit_status.run(work)


def import_dm(
    source: Annotated[
        Path, typer.Argument(metavar="LOG", help="A log of dm-log-writes, or of the driver blklogwrites of QEMU.")
    ],
    target: Annotated[Path, typer.Option("--onto-log", metavar="DIR/NAME", help="Create DIR/NAME.000001.hrl, ...")],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Size of the disk. Default: the end of the last write in the log."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create change log segments from a log in the format of the Linux device mapper's log-writes target."""

    async def work() -> None:
        if not target.name or not target.parent.is_dir():
            raise RigError(Code.FolderUnusable, f"{target.parent}: is not a folder; write --onto-log DIR/NAME")
        check_file_name("log", target.name)
        size_bytes = None if size is None else parse_size(size)
        total_bytes = source.stat().st_size if source.is_file() else 0
        with _writing(target), output.bar("importing", total_bytes) as advance:
            done = import_log(source, target.parent, target.name, size_bytes=size_bytes, advance=advance)
        if done.fua:
            output.notice(f"{done.fua} entries have the flag FUA, which a change log cannot record: the flag is left out")
        if as_json:
            fields = {"files": [str(path) for path in done.paths], "disk_id": done.disk_id, "entries": done.entries}
            output.print_json({**fields, "records": done.records, "disk_size_bytes": done.disk_size_bytes})
            return
        row = done.paths[0] if len(done.paths) == 1 else f"{done.paths[0]} to {done.paths[-1].name}"
        output.line(
            f"{row}: entries: {done.entries}; records: {done.records}; disk: {done.disk_size_bytes} bytes, "
            f"new id {done.disk_id}"
        )

    exit_status.run(work)
