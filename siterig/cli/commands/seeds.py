"""The options of ``siterig protect`` that name offline seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.images.image_formats import FORMATS, ImageFormat


def parse_seeds(images: Sequence[str], formats: Sequence[str]) -> list[SeedSource]:
    """Return the seeds of ``--seed-from [NAME=]IMAGE`` and ``--seed-format [NAME=]FORMAT``.

    Raises:
        RigError: ``InvalidDisk`` names the option that is not understood.
    """
    found = [SeedSource.parse(text, Path.cwd(), "--seed-from") for text in images]
    format_of: dict[str | None, str] = {}
    for text in formats:
        name, equals, format_ = text.rpartition("=")
        if format_ not in FORMATS:
            raise RigError(Code.InvalidDisk, f"--seed-format {text!r}: {format_!r} is not one of {', '.join(FORMATS)}")
        if equals and name not in (seed.disk for seed in found):
            names = ", ".join(seed.disk for seed in found if seed.disk is not None) or "none"
            raise RigError(
                Code.InvalidDisk, f"--seed-format {text!r}: there is no --seed-from {name}=IMAGE; named seeds: {names}"
            )
        format_of[name if equals else None] = format_
    if formats and not found:
        raise RigError(Code.InvalidDisk, "--seed-format: there is no --seed-from [NAME=]IMAGE")
    return [
        seed.model_copy(update={"format": cast("ImageFormat | None", format_of.get(seed.disk, format_of.get(None)))})
        for seed in found
    ]
