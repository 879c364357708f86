"""JSON text for programs, for names with any characters."""

from __future__ import annotations

import json
from typing import Any

from siterig.blockfs.core.printable import valid_unicode


def json_text(value: object, *, indent: int | None = None) -> str:
    r"""Return a value as JSON in ASCII; a model becomes an object with its fields.

    A byte of a file name that is not UTF-8 becomes the four characters ``\xff``, because JSON strings cannot hold it.
    """
    return json.dumps(_plain(value), indent=indent)


def _plain(value: object) -> Any:
    if hasattr(value, "model_dump"):  # a pydantic model: its library takes longer to load than --version to run
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return {valid_unicode(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return valid_unicode(value)
    if value is None or isinstance(value, int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")
