"""The working directory that is uploaded with a job: gtvray's code and the settings files of its command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from gtvray.config import is_setting
from gtvray.errors import TooLargeError
from gtvray.io import is_uri

# Ray's own limit is 100 MiB, which it reports without naming what is large.
LIMIT_BYTES = 20 << 20
_LARGEST_NAMED = 3
# Subpackages whose folders lie elsewhere in the source tree.
_SHIPPED = ("deploy", "tune_configs")
_SETTINGS = (".yaml", ".yml")
# Options whose value is a path, whether it exists or not.
PATH_OPTIONS = (
    "--workspace",
    "--data",
    "--out",
    "-o",
    "--baseline",
    "--golden",
    "--token-file",
    "--key",
    "--send",
    "--against",
    "--locator",
)
# Those of them that name output.
NEW_PATHS = ("--workspace", "--out", "-o")
# Commands with an argument that names a new folder, and its position among the arguments.
_TARGETS = {("data", "import"): 1, ("data", "export"): 1, ("data", "phantom"): 0, ("models", "export"): 1}
# Options of these commands that take no value.
FLAGS = ("--blind", "--overwrite", "--json", "--help", "--")


def package_code(target: Path) -> None:
    """Copy the code of this installation of gtvray, and nothing else, to a folder.

    Args:
        target: an empty folder.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *_SHIPPED)
    shutil.copytree(Path(__file__).resolve().parent.parent, target / "gtvray", ignore=ignored)
    for name in _SHIPPED:
        source = Path(str(resources.files(f"gtvray.{name}") / ""))
        shutil.copytree(source, target / "gtvray" / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def locate_words(words: Sequence[str], target: Path | None) -> list[str]:
    """Rewrite the paths in a command so that they refer to the same files on the cluster.

    Local settings files are copied to the folder that is uploaded with the job. Other relative paths become absolute:
    data and results are on storage that the cluster has at the same path. URIs stay as they are.

    Args:
        words: a command and its arguments.
        target: folder that is uploaded as the working directory of the job; None if nothing is uploaded.
    """
    located: list[str] = []
    written = target_of(words)
    for number, word in enumerate(words):
        option, separator, value = word.partition("=")
        if separator and option.startswith("-"):
            is_path = option in PATH_OPTIONS
            located.append(f"{option}={_located(value, is_path, target, number)}")
        elif word.startswith("-"):
            located.append(word)
        else:
            is_path = number == written or (bool(number) and words[number - 1] in PATH_OPTIONS)
            located.append(_located(word, is_path, target, number))
    return located


def absolute(location: str) -> str:
    """Return a path as an absolute one, and a URI unchanged: the command that gets it uses or refuses it."""
    return location if is_uri(location) else os.path.abspath(location)


def check_size(target: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Reject a folder that is too large to be uploaded.

    Raises:
        TooLargeError: the folder is too large; the error names its largest files.
    """
    sizes = {file: file.stat().st_size for file in target.rglob("*") if file.is_file()}
    if sum(sizes.values()) > limit_bytes:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:_LARGEST_NAMED]
        named = ", ".join(f"{file.relative_to(target)} {sizes[file] / 1e6:.1f} MB" for file in largest)
        raise TooLargeError(
            "the code and settings files of the job are too large",
            expected=f"at most {limit_bytes / 1e6:.0f} MB",
            found=f"{sum(sizes.values()) / 1e6:.1f} MB; largest: {named}",
            do="move them out of the package, or install gtvray on the cluster and pass --installed",
        )


def target_of(words: Sequence[str]) -> int | None:
    """Return the number of the word that names the new folder of a command; None if there is none."""
    position = _TARGETS.get((words[0], words[1])) if len(words) > 1 else None
    if position is None:
        return None
    arguments: list[int] = []
    is_value = False
    for number, word in enumerate(words[2:], 2):
        if word.startswith("-"):
            is_value = "=" not in word and word not in FLAGS
        elif is_value:
            is_value = False
        elif not is_setting(word):
            arguments.append(number)
    return arguments[position] if len(arguments) > position else None


def _located(word: str, is_path: bool, target: Path | None, number: int) -> str:
    if is_uri(word):
        return word
    path = Path(word)
    if target is not None and path.suffix in _SETTINGS and path.is_file():
        # The name stays: a sweep is named after its file.
        travelling = Path("settings") / str(number) / path.name
        (target / travelling).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / travelling)
        return str(travelling)
    return absolute(word) if is_path or path.exists() else word
