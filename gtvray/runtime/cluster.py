"""Connecting to a Ray cluster, or starting one on this machine and ending it again.

A local cluster keeps its dashboard: without it Ray's own cleaner cannot free the placement groups of stopped trials
(ray-project/ray#58515). Its ports are the system's choice, so that several clusters live side by side.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gtvray.errors import AuthError, ResourceError
from gtvray.runtime.limits import memory_limit_bytes, usable_cpus, usable_memory_bytes
from gtvray.runtime.proxies import bypass_proxies
from gtvray.runtime.temporary import ray_temp_folder
from gtvray.runtime.tokens import TOKEN_ADVICE, ensure_token
from gtvray.runtime.usage import without_usage_module

_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where Ray keeps objects, not a temporary file
_OBJECT_STORE_BYTES = 512 << 20
# Ray refuses less than 75 MiB.
_LEAST_STORE_BYTES = 80 << 20
# Read by Ray when its modules are imported, in this process and, by inheritance, in those it starts.
PROXY_CALLBACK = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "gtvray.serving.edge.middlewares")
_ENVIRONMENT = {
    # Ray Serve's proxies take middlewares by this variable alone.
    PROXY_CALLBACK[0]: PROXY_CALLBACK[1],
    "RAY_TRAIN_V2_ENABLED": "1",
    # A machine that is taken away is a lost worker to us, whose training goes on from its checkpoint.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ctrl-C must reach us, not end in a sweep that looks finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
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
def connect(
    address: str | None = None, *, cpus: int | None = None, worker_env: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Connect to a running cluster, or start one here, for the length of a `with` block.

    Args:
        address: of a running cluster ("auto" finds one on this machine); without it the one RAY_ADDRESS names, as in
            a job on a cluster, and without that one is started. To join one that wants a token, call `use_token`
            before Ray is imported.
        cpus: CPUs of a started one; if not given, all that this process may use.
        worker_env: environment variables of the processes that are started on a running cluster.

    Raises:
        ResourceError: the cluster does not answer, or none can be started.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    bypass_proxies()
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto"):
        _require_answer(str(address))
    # Before Ray is imported: it reads the variables that these set.
    options = _joining(str(address), worker_env) if address else _starting(cpus)
    import ray
    from ray.exceptions import AuthenticationError

    try:
        with without_usage_module():
            context = ray.init(**options)
    except AuthenticationError as error:
        raise AuthError("the Ray cluster wants its token", where=address, do=TOKEN_ADVICE) from error
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise ResourceError(
            "cannot connect to Ray" if address else "cannot start Ray on this machine",
            where=address,
            found=error,
            do="start one with `ray start --head`, or leave the address out" if address else "run `gtvray doctor`",
        ) from error
    before = os.environ.get("RAY_ADDRESS")
    try:
        gcs = str(context.address_info["gcs_address"])
        # Actors that look for "the" cluster must find this one, whatever else runs on the machine.
        os.environ["RAY_ADDRESS"] = gcs
        total = ray.cluster_resources()
        yield Cluster(gcs, address is None, float(total.get("CPU", 0)), float(total.get("GPU", 0)))
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()


def _starting(cpus: int | None) -> dict[str, Any]:
    """Options of a local cluster within the limits of this process's container or job."""
    ensure_token()
    folder = ray_temp_folder()
    memory = usable_memory_bytes()
    store = min(_OBJECT_STORE_BYTES, max(memory // 4, _LEAST_STORE_BYTES))
    options: dict[str, Any] = {
        # Without an address Ray would join whatever was last started on this machine.
        "address": "local",
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        # Ray counts the host's CPUs and memory where the limits are not at the root of the control groups.
        "num_cpus": usable_cpus() if cpus is None else cpus,
        "object_store_memory": store,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "_temp_dir": folder,
    }
    if memory_limit_bytes() is not None:
        options["_memory"] = memory - store
    if not os.path.isdir(_SHARED_MEMORY) or shutil.disk_usage(_SHARED_MEMORY).free < store:
        # Slower, and all there is in a container with Docker's 64 MB. Ray would stop where /dev/shm is missing.
        os.makedirs(folder, exist_ok=True)
        options["_plasma_directory"] = folder
    return options


def _joining(address: str, worker_env: Mapping[str, str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if worker_env:
        options["runtime_env"] = {"env_vars": dict(worker_env)}
    return options


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
