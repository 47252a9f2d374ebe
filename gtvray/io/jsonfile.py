"""JSON files, read with an explanation and written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gtvray.errors import InputError, NotFoundError
from gtvray.io.atomic import atomic_path


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; keys keep their order, NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: no such file.
        InputError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("not a JSON file", where=path, found=error) from error
