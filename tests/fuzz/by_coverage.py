"""Run the same properties by hand under a coverage-guided fuzzer; only this module needs the package ``atheris``.

``python -m tests.fuzz.by_coverage TARGET [CORPUS_FOLDER] [-max_total_time=S] [-seed=N]``: other options are libFuzzer's.
``TARGETS`` lists the targets.  For them the fuzzer mutates the choices of the damage (``damage.Choices``).  With ``-raw``
after the name it mutates the bytes of the file, and in half of the cases the checksums are corrected afterwards.  The
fuzzer stops at the first finding and prints its input.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")
with atheris.instrument_imports(include=["siterig.azure_emu", "siterig.blockfs", "zstandard"]):
    from siterig.blockfs.core.boot import current_boot_id
    from tests.fuzz import (
        damage,
        disk_damage,
        disk_targets,
        log_targets,
        small_damage,
        small_targets,
        store_damage,
        store_targets,
    )
    from tests.fuzz import strict_log as log
    from tests.fuzz.damage import Choices
    from tests.fuzz.trust import trust_damage, trust_targets
    from tests.support.memory import folder_in_memory

BOOT_ID = current_boot_id()
Target = Callable[[bytes, Path], str]
TARGETS: dict[str, Target] = {
    "segment": lambda raw, folder: log_targets.segment(damage.segment(Choices(raw), BOOT_ID), folder),
    "index": lambda raw, folder: log_targets.index(damage.segment(Choices(raw), BOOT_ID), folder),
    "row": lambda raw, folder: log_targets.row(damage.row(Choices(raw), BOOT_ID), folder),
    "disk": lambda raw, folder: disk_targets.disk(disk_damage.folder(Choices(raw), BOOT_ID), folder),
    "part": lambda raw, folder: log_targets.part(*damage.part(Choices(raw), BOOT_ID), folder),
    "envelope": lambda raw, folder: small_targets.envelope(small_damage.envelope(Choices(raw)), folder),
    "envelope-raw": small_targets.envelope,
    "bundle": lambda raw, folder: log_targets.bundle(small_damage.bundle(Choices(raw)), folder),
    "bundle-raw": log_targets.bundle,
    "dm_log": lambda raw, folder: small_targets.dm_log(small_damage.dm_log(Choices(raw)), folder),
    "disk_state": lambda raw, folder: small_targets.disk_state(small_damage.disk_state(Choices(raw)), folder),
    "dirty": lambda raw, folder: small_targets.dirty_file(small_damage.dirty_file(Choices(raw)), folder),
    "top_maps": lambda raw, folder: small_targets.top_maps(small_damage.top_maps(Choices(raw), BOOT_ID), folder),
    "vault_keys": lambda raw, folder: small_targets.vault_keys(small_damage.vault_keys(Choices(raw)), folder),
    "vault_keys-raw": small_targets.vault_keys,
    "identity": lambda raw, folder: trust_targets.identity(trust_damage.identity(Choices(raw)), folder),
    "register": lambda raw, folder: trust_targets.register(trust_damage.register(Choices(raw)), folder),
    "credentials": lambda raw, folder: trust_targets.credentials(trust_damage.credentials(Choices(raw)), folder),
    "user_account": lambda raw, folder: trust_targets.user_account(trust_damage.user_account(Choices(raw)), folder),
    "vhd": lambda raw, folder: small_targets.vhd(small_damage.vhd(Choices(raw)), folder),
    "meta": lambda raw, folder: store_targets.meta(*store_damage.meta(Choices(raw)), folder),
    "note": lambda raw, folder: store_targets.note(store_damage.note(Choices(raw)), folder),
    "base_map": lambda raw, folder: store_targets.base_map(store_damage.base_map(Choices(raw)), folder),
    "intent": lambda raw, folder: store_targets.intent(store_damage.intent(Choices(raw)), folder),
    "journal": lambda raw, folder: store_targets.store(*store_damage.store(Choices(raw)), folder),
    "checkpoint": lambda raw, folder: store_targets.checkpoint(*store_damage.checkpoint(Choices(raw)), folder),
    "segment-raw": lambda raw, folder: log_targets.segment(log.reseal(raw[1:]) if raw[:1] < b"\x80" else raw[1:], folder),
    "dm_log-raw": small_targets.dm_log,
    "disk_state-raw": small_targets.disk_state,
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    outcomes: Counter[str] = Counter()
    with folder_in_memory("siterig-fuzz") as memory:  # libFuzzer ends the process: the next run removes the folder

        def once(raw: bytes) -> None:
            with tempfile.TemporaryDirectory(dir=memory) as name:
                try:
                    outcomes[target(raw, Path(name))] += 1
                except BaseException:
                    print(f"input: {raw!r}", flush=True)
                    raise
            if sum(outcomes.values()) % 10_000 == 0:
                print(f"outcomes: {dict(sorted(outcomes.items()))}", flush=True)

        atheris.Setup(sys.argv, once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
