"""Ray Tune's stored search state after the sweep's folder has moved.

Tune corrects its trials and their checkpoints by itself when it restores an experiment from another folder. The search
algorithm's state also holds the storage path, and every new trial takes it from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import cloudpickle

from gtvray.errors import TrainingError
from gtvray.io import atomic_path

_STATES = ("basic-variant-state-*.json", "search_gen_state-*.json")


def relocate_search_state(folder: Path) -> int:
    """Update the storage path in the search state of an experiment to the folder that contains it.

    Args:
        folder: absolute path of Tune's folder in the folder of the sweep.

    Returns:
        the number of corrected files.

    Raises:
        TrainingError: a file cannot be read, or still names the former folder after the correction.
    """
    files = [file for pattern in _STATES for file in sorted(folder.glob(pattern))]
    return sum(_relocate(file, str(folder.parent)) for file in files)


def _relocate(file: Path, storage: str) -> bool:
    try:
        state = cloudpickle.loads(file.read_bytes())
        former = [each for each in _storages(state) if each.storage_fs_path != storage]
        before = {each.storage_fs_path for each in former}
        for each in former:
            each.storage_fs_path = storage
            # The last transfer, stored with its path for a retry; there is no public API to drop it.
            each.syncer._current_cmd = None
        content: bytes = cloudpickle.dumps(state)
    except Exception as error:  # written by another version of Ray, a pickle may raise anything
        raise TrainingError(
            "Ray Tune's state of this sweep cannot be read",
            where=file,
            found=f"{type(error).__name__}: {error}",
            do="resume it with the version of Ray that wrote it, or start a new sweep",
        ) from error
    if not former:
        return False
    for former_path in before:
        # Paths below the former one are wrong too. The new path may itself begin with the former.
        if former_path.encode() in content.replace(storage.encode(), b""):
            raise TrainingError(
                "this sweep was moved, and Ray Tune's state still refers to the former folder",
                where=storage,
                expected=former_path,
                found=f"{file.name} still names the former folder",
                do="move the workspace back and resume it there, or start a new sweep",
            )
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)
    return True


def _storages(state: dict[str, Any]) -> Iterator[Any]:
    """Yield the storage contexts of new trials: those of Optuna's search and of random search."""
    specs = [iterator.unresolved_spec for iterator in state.get("_iterators", ())]
    if state.get("experiment") is not None:
        specs.append(state["experiment"].spec)
    for spec in specs:
        if spec.get("storage") is not None:
            yield spec["storage"]
