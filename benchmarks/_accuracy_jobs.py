"""What a stage of the accuracy figure is told, and how it is run: in a process of its own, once, its result kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gtvray.config import Config, flatten
from gtvray.errors import InputError
from gtvray.io import read_json, write_json

STAGES = Path(__file__).with_name("_accuracy_stages.py")
# What shapes a model. Where its cases lie, and where it is tracked and served, does not.
SHAPING = ("preprocessing", "augmentation", "network", "loss", "optimizer", "training", "inference")
# Every library that counts threads by itself.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One training and the cases that judge it; written as JSON beside the results of its stages.

    Attributes:
        data: dataset of the cases to learn from.
        threads: CPU threads.
        folder: for checkpoints and the bundle.
        train, selection: case ids; those of `selection` calibrate.
        judged: dataset of the cases to be judged by.
        cases: their ids.
        masks: folder for the masks.
        config: everything, as nested sections.
        keep: whose weights become the bundle: "best" or "last" epoch's.
        cache: folder of prepared cases.
    """

    data: str
    threads: int
    folder: str
    train: tuple[str, ...] = ()
    selection: tuple[str, ...] = ()
    judged: str = ""
    cases: tuple[str, ...] = ()
    masks: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    keep: str = "best"
    cache: str = ""


def run_stage(name: str, job: Job, result: Path) -> dict[str, Any]:
    """What a stage came to; it is run if `result` is not there."""
    if not result.exists():
        said = result.with_name(f"{name}-job.json")
        write_json(said, asdict(job))
        sys.stderr.write(f"{name}: {result.parent}\n")
        command = [sys.executable, str(STAGES), name, str(said), str(result)]
        code = run_child(command, job.threads, sys.stderr)
        if code:
            raise SystemExit(f"stage {name} of {result.parent} ended with {code}; run it again to go on from there")
    return dict(read_json(result))


def run_child(command: Sequence[str], threads: int, said: Any, **variables: str) -> int:
    """A process with so many threads, and those that it starts; none of them outlives this one.

    Args:
        command: what to run.
        threads: for every library that counts them by itself.
        said: the open file that takes its standard output.
        variables: of its environment.
    """
    counts = dict.fromkeys(THREADS, str(threads))
    environment = {**os.environ, **counts, **variables}
    # Files stay open in it: should this process be killed, the child holds the lock of `only_one` to its end.
    child = subprocess.Popen(command, stdout=said, env=environment, start_new_session=True, close_fds=False)
    try:
        return child.wait()
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the folder of stages for the length of a `with` block; a second run of the same would spoil both.

    Raises:
        InputError: another process holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError("another run holds this folder", where=work, do="wait for it, or end it") from error
        os.set_inheritable(file.fileno(), True)
        yield


def shaping(config: Config, sections: Sequence[str] = SHAPING) -> dict[str, Any]:
    """The dotted settings that shape a model and differ from the defaults: a setting that came later leaves them so."""
    usual = flatten(Config())
    chosen = {key: value for key, value in flatten(config).items() if key.startswith(tuple(f"{s}." for s in sections))}
    return {key: value for key, value in chosen.items() if value != usual[key]}


def digest_of(value: Mapping[str, Any]) -> str:
    """Eight characters that name a mapping."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
