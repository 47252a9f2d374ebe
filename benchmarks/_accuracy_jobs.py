"""What a stage of the accuracy figure is told, and how it is run: in a process of its own, once, its result kept."""

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
# What shapes a model. Where its cases lie, and where it is tracked and served, does not.
SHAPING = ("preprocessing", "augmentation", "network", "loss", "optimizer", "training", "inference")
# Every library that counts threads by itself.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """One training and the cases that judge it; written as JSON beside the results of its stages.

    Attributes:
        data: dataset of the cases to learn from.
        threads: CPU threads.
        folder: for checkpoints, or for the bundle.
        train, selection: case ids; those of `selection` calibrate, and the first of them compare epochs.
        members: folders of the trainings whose networks are the bundle's.
        judged: dataset of the cases to be judged by.
        cases: their ids.
        masks: folder for the masks.
        config: everything, as nested sections.
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
    """What a stage came to; it is run if `result` is not there."""
    return run_stages(name, {result: job})[0]


def run_stages(name: str, jobs: Mapping[Path, Job], at_once: int = 1) -> list[dict[str, Any]]:
    """The same of several jobs, so many side by side; by the file of their results."""
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
            raise SystemExit(f"stage {name} of {result.parent} ended with {code}; run it again to go on from there")
    return [dict(read_json(result)) for result in jobs]


def run_children(
    commands: Sequence[Sequence[str]], at_once: int, threads: int, said: Any, **variables: str
) -> list[int]:
    """Processes, and those that they start; none of them outlives this one. Returns what they ended with.

    Args:
        commands: what to run.
        at_once: how many side by side.
        threads: of each, for every library that counts them by itself.
        said: the open file that takes their standard output.
        variables: of their environment.
    """
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **variables}
    left, running, codes = dict(enumerate(commands)), dict[int, subprocess.Popen[bytes]](), dict[int, int]()
    try:
        while left or running:
            for number in list(left)[: at_once - len(running)]:
                # Files stay open in it: should this process be killed, the child holds the lock of `only_one`.
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
