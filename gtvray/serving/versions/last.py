"""A version that may be served, and the file that names the one that an endpoint served last.

That version is served again after a restart if the champion is rejected, and until the registry responds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from gtvray.errors import InputError
from gtvray.io import read_json, write_json


@dataclass(frozen=True)
class Candidate:
    """A version that may be served; its files are verified.

    Attributes:
        version: number in the registry.
        digest: digest of the bundle.
        bundle: folder of the bundle, readable from every node.
        golden: folder of its golden cases; None if it has none.
        override: reason given for overriding the promotion gate; empty if it was not overridden.
    """

    version: str
    digest: str
    bundle: Path
    golden: Path | None
    override: str = ""


def last_file(pointer: Path) -> Path:
    """The file that names the version served last, beside the pointer to the served version."""
    return pointer.with_suffix(".last.json")


def read_last(file: Path) -> Candidate | None:
    """Return the version served last; None if its files are gone.

    Its replicas check digest and golden cases.
    """
    try:
        stored = read_json(file)
        golden = Path(stored["golden"]) if stored["golden"] is not None else None
        last = Candidate(stored["version"], stored["digest"], Path(stored["bundle"]), golden, stored["override"])
    except (OSError, InputError, KeyError, TypeError):
        return None
    return last if all(folder.is_dir() for folder in (last.bundle, last.golden) if folder is not None) else None


def write_last(file: Path, candidate: Candidate) -> None:
    """Name the version that is served."""
    golden = str(candidate.golden) if candidate.golden is not None else None
    write_json(file, {**asdict(candidate), "bundle": str(candidate.bundle), "golden": golden})
