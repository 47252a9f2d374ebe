"""A cache of converted networks on disk: written atomically, verified against their digests at every read.

One folder per conversion, named by the digest of its key. The cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.io import atomic_dir, read_json, write_json

_XML, _WEIGHTS, _ENTRY = "model.xml", "model.bin", "entry.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """A network in OpenVINO's format: its graph and its tensors, as bytes."""

    xml: bytes
    weights: bytes

    def digests(self) -> dict[str, str]:
        """The sha256 of each file."""
        return {
            _XML: hashlib.sha256(self.xml).hexdigest(),
            _WEIGHTS: hashlib.sha256(self.weights).hexdigest(),
        }


class ConversionStore:
    """A folder of conversions, which several processes may use at once.

    Args:
        folder: created when a conversion is added.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: dict[str, Any]) -> Converted | None:
        """The conversion of a key, or None if it is missing or damaged.

        The bytes returned are the bytes that were verified, whatever happens to the files meanwhile.
        """
        entry = self._entry(key)
        try:
            stored = read_json(entry / _ENTRY)
            found = Converted((entry / _XML).read_bytes(), (entry / _WEIGHTS).read_bytes())
        except (InputError, OSError):
            return None
        if stored == {"key": key, "files": found.digests()}:
            return found
        _log.warning("%s: the converted network is damaged; it is converted again", entry)
        return None

    def add(self, key: dict[str, Any], converted: Converted) -> Converted:
        """Store a conversion, replacing a damaged one.

        Raises:
            ResourceError: the disk is full.
            InputError: the folder cannot be written to.
        """
        with atomic_dir(self._entry(key)) as temporary:
            (temporary / _XML).write_bytes(converted.xml)
            (temporary / _WEIGHTS).write_bytes(converted.weights)
            write_json(temporary / _ENTRY, {"key": key, "files": converted.digests()})
        return converted

    def _entry(self, key: dict[str, Any]) -> Path:
        return self._folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def default_store() -> ConversionStore:
    """The user's cache: `$GTVRAY_CACHE`, else `gtvray` in `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ConversionStore(Path(os.environ.get("GTVRAY_CACHE") or Path(home) / "gtvray") / "openvino")
