"""Stages of the accuracy benchmark: their input, and running each once in its own process with a stored result."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gtvray.config import Config, flatten
from gtvray.errors import InputError
from gtvray.io import read_json, write_json

STAGES = Path(__file__).with_name("_accuracy_stages.py")
# The sections that determine a model; paths, tracking and serving do not.
SHAPING = ("preprocessing", "augmentation", "network", "loss", "optimizer", "training", "inference")
# Every library that has its own number of threads.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """One training and its evaluation cases; written as JSON beside the results of its stages.

    Attributes:
        data: dataset of the training cases.
        threads: CPU threads.
        folder: folder for checkpoints or the bundle.
        train, selection: case ids; `selection` is for calibration, its first cases for comparing epochs.
        members: folders of the trainings whose networks form the bundle.
        judged: dataset of the evaluation cases.
        cases: ids of the evaluation cases.
        masks: folder for the masks.
        config: all settings, as nested sections.
        cache: folder of prepared cases.
    """

    data: str
    threads: int
    folder: str
    train: tuple[str, ...] = ()
    selection: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    judged: str = ""
    cases: tuple[str, ...] = ()
    masks: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    cache: str = ""


def run_stage(name: str, job: Job, result: Path) -> dict[str, Any]:
    """Return the result of a stage; run it if `result` does not exist."""
    return run_stages(name, {result: job})[0]


def run_stages(name: str, jobs: Mapping[Path, Job], at_once: int = 1) -> list[dict[str, Any]]:
    """Run a stage for several jobs in parallel; results by file."""
    commands = {}
    for result, job in jobs.items():
        if not result.exists():
            said = result.with_name(f"{name}-job.json")
            write_json(said, asdict(job))
            sys.stderr.write(f"{name}: {result.parent}\n")
            commands[result] = [sys.executable, str(STAGES), name, str(said), str(result)]
    threads = max((job.threads for job in jobs.values()), default=1)
    codes = run_children(list(commands.values()), at_once, threads, sys.stderr)
    for result, code in zip(commands, codes, strict=True):
        if code:
            raise SystemExit(f"stage {name} of {result.parent} exited with code {code}; run it again to resume")
    return [dict(read_json(result)) for result in jobs]


def run_children(
    commands: Sequence[Sequence[str]], at_once: int, threads: int, said: Any, **variables: str
) -> list[int]:
    """Run processes and return their exit codes; they and their descendants end with this process.

    Args:
        commands: command lines.
        at_once: number of processes in parallel.
        threads: threads of each, set for every library.
        said: open file for their standard output.
        variables: additional environment variables.
    """
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **variables}
    left, running, codes = dict(enumerate(commands)), dict[int, subprocess.Popen[bytes]](), dict[int, int]()
    try:
        while left or running:
            for number in list(left)[: at_once - len(running)]:
                # Open files are inherited, so that a child holds the lock of `only_one` if this process is killed.
                running[number] = subprocess.Popen(
                    left.pop(number), stdout=said, env=environment, start_new_session=True, close_fds=False
                )
            time.sleep(_POLL_S)
            for number in [number for number, child in running.items() if child.poll() is not None]:
                codes[number] = running.pop(number).returncode
    finally:
        for child in running.values():
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return [codes[number] for number in range(len(commands))]


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Lock the folder of stages during a `with` block, because two runs in it would corrupt each other.

    Raises:
        InputError: another process holds the lock.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError("another run is using this folder", where=work, do="wait for it, or stop it") from error
        os.set_inheritable(file.fileno(), True)
        yield


def shaping(config: Config, sections: Sequence[str] = SHAPING) -> dict[str, Any]:
    """Return the settings that determine a model and differ from the defaults; new settings do not change it."""
    usual = flatten(Config())
    chosen = {key: value for key, value in flatten(config).items() if key.startswith(tuple(f"{s}." for s in sections))}
    return {key: value for key, value in chosen.items() if value != usual[key]}


def digest_of(value: Mapping[str, Any]) -> str:
    """Return eight characters of the digest of a mapping."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
