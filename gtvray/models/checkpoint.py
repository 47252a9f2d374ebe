"""The Checkpoint: the state from which a training resumes exactly. Nothing in it is pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gtvray.errors import InputError, TrainingError
from gtvray.failpoints import failpoint
from gtvray.io import atomic_dir, read_json, sha256_of, write_json

_TENSORS = "state.safetensors"
_META = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A training's state at the end of an epoch.

    Attributes:
        tensors: flat name -> tensor: weights, moving average, optimizer moments, random state.
        meta: position and history, plain JSON values.
    """

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def save(self, folder: Path, confirm: Callable[[], None] = lambda: None) -> None:
        """Write the checkpoint to a folder, atomically.

        Args:
            folder: replaced if it exists.
            confirm: called before the complete checkpoint appears; raises to have it removed instead.

        Raises:
            ResourceError: the disk is full.
            InputError: the folder cannot be written to.
        """
        with atomic_dir(folder, confirm=confirm) as temporary:
            with _disk_full_as_os_error():
                save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary / _TENSORS)
            failpoint("checkpoint.write")
            meta = {**self.meta, "sha256": sha256_of(temporary / _TENSORS)}
            write_json(temporary / _META, {**meta, "meta_sha256": _digest(meta)})

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint and verify its digests.

        Raises:
            TrainingError: it is damaged or missing.
        """
        do = "resume from the checkpoint before it"
        try:
            meta = read_json(folder / _META)
            sound = meta.pop("meta_sha256") == _digest(meta) and meta.pop("sha256") == sha256_of(folder / _TENSORS)
        except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError("checkpoint is incomplete", where=folder, found=error, do=do) from error
        if not sound:
            raise TrainingError("checkpoint is damaged", where=folder, do=do)
        return cls(load_file(folder / _TENSORS), meta)


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@contextmanager
def _disk_full_as_os_error() -> Iterator[None]:
    """Turn a SafetensorError about a full disk into an OSError: safetensors drops the error number of the system."""
    try:
        yield
    except SafetensorError as error:
        if os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's per-parameter state as flat tensors, named `index/name`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load the tensors of `flatten_optimizer`; the parameter groups stay as configured."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
