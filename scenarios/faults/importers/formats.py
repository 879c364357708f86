"""The formats of other tools' fault files, by the names that the command line has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from siterig.scenarios.faults.importers.blkdebug import import_blkdebug
from siterig.scenarios.faults.importers.imported import ImportedRules, read_text
from siterig.scenarios.faults.importers.lazyfs import import_lazyfs
from siterig.scenarios.faults.importers.toxiproxy import import_toxiproxy

FORMATS: Mapping[str, Callable[[str, str], ImportedRules]] = {
    "lazyfs": import_lazyfs,
    "toxiproxy": import_toxiproxy,
    "blkdebug": import_blkdebug,
}


def import_file(format_name: str, path: Path) -> ImportedRules:
    """Return the rules of a file of another tool.

    Args:
        format_name: one of ``FORMATS``.
        path: the file.
    Raises:
        RigError: ``FaultNotImported``; the message names file, fault, key and value.
    """
    return FORMATS[format_name](str(path), read_text(path))
