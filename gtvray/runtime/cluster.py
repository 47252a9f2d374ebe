"""Connecting to a Ray cluster, or starting one on this machine and ending it again.

A local cluster keeps its dashboard: without it Ray's own cleaner cannot free the placement groups of stopped trials
(ray-project/ray#58515). Its ports are the system's choice, so that several clusters live side by side.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.errors import AuthError, ResourceError
from gtvray.runtime.proxies import bypass_proxies

TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (on the head: `ray get-auth-token`)"  # noqa: S105
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
def connect(
    address: str | None = None, *, cpus: int | None = None, worker_env: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Connect to a running cluster, or start one here, for the length of a `with` block.

    Args:
        address: of a running cluster ("auto" finds one on this machine); without it the one RAY_ADDRESS names, as in
            a job on a cluster, and without that one is started. To join one that wants a token, call `use_token`
            before Ray is imported.
        cpus: CPUs of a started one; all if not given.
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
    import ray
    from ray.exceptions import AuthenticationError

    try:
        context = ray.init(**(_joining(str(address), worker_env) if address else _starting(cpus)))
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


def use_token() -> None:
    """Bear the cluster's token if there is one; to be called before anything imports Ray, which reads it once.

    Ray looks for a token by itself only where it starts a cluster, not where it joins one or submits to it.
    """
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if os.environ.get("RAY_AUTH_TOKEN") or token_file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _starting(cpus: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        # Without an address Ray would join whatever was last started on this machine.
        "address": "local",
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
