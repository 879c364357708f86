"""The folder of a tracked disk, in states that a kill may leave and in impossible ones."""

from __future__ import annotations

from tests.fuzz import damage, small_damage
from tests.fuzz import strict_log as log
from tests.fuzz.damage import Choices


def state_of(size_bytes: int) -> bytes:
    """Return the ``NAME.disk`` of a tracked disk."""
    return small_damage.seal_state(
        {
            "disk_id": damage.DISK_ID,
            "size_bytes": size_bytes,
            "kind": "raw",
            "generation": damage.GENERATION,
            "tracked": True,
            "needs_resync": None,
        }
    )


def folder(pick: Choices, boot_id: str) -> dict[str, bytes]:
    """Return the files of a tracked disk ``os`` after a kill, mostly damaged; the image has the log's disk size."""
    begun_in = damage.OTHER_ID if pick.once_in(6) else boot_id
    made = damage.good_row(pick, begun_in)
    sizes = [
        log.field(piece, log.RECORD_FIELDS, "length") for pieces in made for piece in pieces[1:] if piece[4] == log.RESIZE
    ]
    state_bytes = max(sizes, default=damage.DISK_BYTES)
    rows = damage.damage_row(made, pick)
    numbers = list(range(3, 3 + len(rows)))
    match pick.below(12):
        case 1:
            rows.append(pick.of([b"", bytes(4096), rows[-1][:127]]))  # a segment that was just created
            numbers.append(numbers[-1] + 1)
        case 2 if len(rows) > 1:
            del rows[(gone := pick.below(len(rows)))], numbers[gone]
        case 3:
            rows.insert(0, rows[-1])
            numbers.insert(0, 2)
        case _:
            pass
    files = {f"os.{number:06d}.hrl": raw for number, raw in zip(numbers, rows, strict=True)}
    if pick.once_in(3):
        files["os.spare"] = files.pop(max(files)) if pick.once_in(2) else pick.of([bytes(4096), rows[-1][:128], b"x"])
    files["os.img"] = bytes(at * 7 % 251 for at in range(damage.DISK_BYTES)).ljust(state_bytes, b"\0")
    files["os.disk"] = state_of(pick.of([damage.DISK_BYTES, state_bytes]))
    files["os.dirty"] = small_damage.make_dirty(damage.DISK_ID, damage.GENERATION)
    match pick.below(12):
        case 1:
            del files["os.dirty"]
        case 2:
            files["os.dirty"] = small_damage.make_dirty(
                damage.DISK_ID, damage.GENERATION - pick.below(2), state=1, bits=b"\3"
            )
        case 3:
            files["os.dirty"] = damage.damage_bytes(files["os.dirty"], pick)
        case _:
            pass
    return files
