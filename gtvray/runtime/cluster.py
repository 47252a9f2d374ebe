"""Connecting to a Ray cluster, or starting one on this machine and ending it again.

A local cluster keeps its dashboard: without it Ray's own cleaner cannot free the placement groups of stopped trials
(ray-project/ray#58515). Its ports are the system's choice, so that several clusters live side by side.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gtvray.errors import ResourceError

# Read by Ray when its modules are imported, in this process and, by inheritance, in those it starts.
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ctrl-C must reach us, not end in a sweep that looks finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster this process is connected to.

    Attributes:
        address: of its control store, host:port.
        is_local: started by us, and ended by us.
        cpus, gpus: in all.
    """

    address: str
    is_local: bool
    cpus: float
    gpus: float


@contextmanager
def connect(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to a running cluster, or start one here, for the length of a `with` block.

    Args:
        address: of a running cluster ("auto" finds one on this machine); None starts one.
        cpus: CPUs of a started one; all if not given.

    Raises:
        ResourceError: the cluster does not answer, or none can be started.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address not in (None, "auto"):
        _require_answer(str(address))
    import ray

    try:
        context = ray.init(**(_joining(str(address)) if address else _starting(cpus)))
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise ResourceError(
            "cannot connect to Ray" if address else "cannot start Ray on this machine",
            where=address,
            found=error,
            do="start one with `ray start --head`, or leave the address out" if address else "run `gtvray doctor`",
        ) from error
    try:
        gcs = str(context.address_info["gcs_address"])
        # Actors that look for "the" cluster must find this one, whatever else runs on the machine.
        os.environ["RAY_ADDRESS"] = gcs
        total = ray.cluster_resources()
        yield Cluster(gcs, address is None, float(total.get("CPU", 0)), float(total.get("GPU", 0)))
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()


def _starting(cpus: int | None) -> dict[str, Any]:
    os.environ.pop("RAY_ADDRESS", None)
    options: dict[str, Any] = {
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": 512 << 20,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if cpus is not None:
        options["num_cpus"] = cpus
    return options


def _joining(address: str) -> dict[str, Any]:
    return {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}


def _require_answer(address: str) -> None:
    """Ray's own connection tries for a minute; a plain TCP connection tells at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise ResourceError(
            "cannot connect to Ray",
            where=address,
            expected="host:port of a running cluster",
            found=error,
            do="start one with `ray start --head`, or leave the address out",
        ) from error
