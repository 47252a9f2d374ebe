"""Coefficients of a cluster: metric writes to MLflow, checkpoints, reads of the case cache, the controller of Serve."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ray import cloudpickle

from gtvray.config import Config
from gtvray.data import CachedCase, CaseCache, PatchSampler
from gtvray.datasets import index_dataset
from gtvray.io import sqlite_uri
from gtvray.models import Checkpoint
from gtvray.runtime import connect
from gtvray.tracking import connect_mlflow
from gtvray.tracking.store import experiment_id, find_or_create_run, log_metrics
from gtvray.training.fit import EPOCH_METRICS
from gtvray.training.state import TrainingState

# Workers do not have this folder on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
_REPLICAS = (1, 4, 8)
_IDLE_S = 10.0


def measure_mlflow(root: Path, seconds: float = 6.0, writers: tuple[int, ...] = (1, 4)) -> dict[str, Any]:
    """Epochs per second that drivers write, as gtvray does: one request with all metrics of an epoch.

    Args:
        root: empty folder.
        seconds: of writing, for each store and number of drivers.
        writers: numbers of drivers that write at the same time, as threads.

    Returns:
        by store; None for PostgreSQL where it is not installed.
    """
    from tests.databases import postgres
    from tests.stores import MlflowServer

    found: dict[str, Any] = {"metrics_per_epoch": len(EPOCH_METRICS)}
    found["sqlite_file"] = _writes(sqlite_uri(root / "file.db"), root / "artifacts", seconds, (1,))
    server = MlflowServer(root / "server.db", root)
    server.start()
    try:
        found["server_on_sqlite"] = _writes(server.uri, root / "artifacts", seconds, writers)
    finally:
        server.kill()
    try:
        with postgres() as uri:
            # MLflow's name of the driver that it is to use.
            server = MlflowServer(uri.replace("postgresql:", "postgresql+psycopg:"), root)
            server.start()
            try:
                found["server_on_postgresql"] = _writes(server.uri, root / "artifacts", seconds, writers)
            finally:
                server.kill()
    except BaseException as error:
        if type(error).__name__ != "Skipped":
            raise
        found["server_on_postgresql"] = None
    return found


def _writes(uri: str, artifacts: Path, seconds: float, writers: tuple[int, ...]) -> dict[str, float]:
    """Epochs per second by number of writers."""
    client = connect_mlflow(uri, artifacts)
    experiment = experiment_id(client, "benchmark", None)
    rates = {}
    for count in writers:
        written = [0] * count
        runs = [find_or_create_run(client, experiment, f"{count}-{number}", {}) for number in range(count)]
        until = time.perf_counter() + seconds

        def write(number: int, runs: list[str] = runs, written: list[int] = written, until: float = until) -> None:
            while time.perf_counter() < until:
                step = written[number] + 1
                metrics = dict.fromkeys(EPOCH_METRICS, 1.0 / step)
                log_metrics(client, runs[number], metrics, step, int(time.time() * 1000))
                written[number] = step

        threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[str(count)] = round(sum(written) / (time.perf_counter() - began), 1)
    return rates


def measure_checkpoint(root: Path, repetitions: int = 5) -> dict[str, Any]:
    """Size of a checkpoint with the default settings, and median seconds to write and to read it."""
    state = TrainingState.build(Config())
    loss = sum(parameter.sum() for parameter in state.network.parameters())
    # The optimizer has state only after a step.
    loss.backward()  # type: ignore[union-attr]
    state.optimizer.step()
    checkpoint = state.checkpoint()
    writes, reads = [], []
    for number in range(repetitions):
        began = time.perf_counter()
        checkpoint.save(root / str(number))
        writes.append(time.perf_counter() - began)
        began = time.perf_counter()
        Checkpoint.load(root / str(number))
        reads.append(time.perf_counter() - began)
    return {
        "bytes": _bytes(root / "0"),
        "write_s": round(float(np.median(writes)), 4),
        "read_s": round(float(np.median(reads)), 4),
    }


def measure_cache(data: Path, root: Path, steps: int = 40) -> dict[str, Any]:
    """Size of a prepared case, and bytes that a step reads from a cache that is not yet in memory.

    Args:
        data: phantoms.
        root: empty folder on the disk that is measured.
        steps: training steps with the default settings.
    """
    config = Config()
    began = time.perf_counter()
    cases = CaseCache(root, config.preprocessing, config.cache).prepare_all(index_dataset(data).cases)
    prepare_s = (time.perf_counter() - began) / len(cases)
    sampler = PatchSampler(cases, config.training, config.preprocessing, config.augmentation)
    _forget(cases)
    before, batch = _read_bytes(), config.training.batch_size
    began = time.perf_counter()
    for step in range(steps):
        sampler.batch(range(step * batch, (step + 1) * batch))
    seconds, read = time.perf_counter() - began, _read_bytes() - before
    return {
        "case_bytes": round(sum(_bytes(case.folder) for case in cases) / len(cases)),
        "cases": len(cases),
        "prepare_s_per_case": round(prepare_s, 2),
        "batch_size": batch,
        # A file system in memory reads nothing from a disk.
        "read_bytes_per_step": round(read / steps) if read else None,
        "read_s_per_step": round(seconds / steps, 4),
    }


def _forget(cases: list[CachedCase]) -> None:
    """Drop the cases from the system's page cache, as if another node had prepared them."""
    os.sync()
    for file in [file for case in cases for file in case.folder.iterdir()]:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _read_bytes() -> int:
    """Bytes that this process has caused to be read from disks."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure_serve() -> dict[str, Any]:
    """Seconds to start idle replicas, and the share of a CPU that Serve's controller uses for them."""
    from ray import serve

    found: dict[str, Any] = {}
    with _serving():
        for replicas in _REPLICAS:
            idle = serve.deployment(num_replicas=replicas, ray_actor_options={"num_cpus": 0})(_Idle)
            began = time.perf_counter()
            serve.run(idle.bind(), name="idle", route_prefix=None)
            started_s = time.perf_counter() - began
            before = _controller_cpu_s()
            time.sleep(_IDLE_S)
            used = (_controller_cpu_s() - before) / _IDLE_S
            found[str(replicas)] = {"started_s": round(started_s, 1), "controller_cpus": round(used, 3)}
    return found


class _Idle:
    def __call__(self) -> None: ...


@contextmanager
def _serving() -> Iterator[None]:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with connect(cpus=2):
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "NoServer"})
        try:
            yield
        finally:
            serve.shutdown()


def _controller_cpu_s() -> float:
    from ray.util.state import list_actors

    (controller,) = [each for each in list_actors(detail=True) if "ServeController" in each.class_name
                     and each.state == "ALIVE"]  # fmt: skip
    fields = Path(f"/proc/{controller.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
