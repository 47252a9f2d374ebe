"""Connection to a Ray cluster, or to a temporary one on this machine.

A local cluster runs the dashboard, because Ray cannot release the placement groups of stopped trials without it
(ray-project/ray#58515). The operating system chooses its ports, so several clusters can run on one machine.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gtvray.errors import AuthError, InputError, ResourceError
from gtvray.failpoints import ONCE_VARIABLE as FAILPOINTS_ONCE
from gtvray.failpoints import VARIABLE as FAILPOINTS
from gtvray.runtime.agent import free_agent_port
from gtvray.runtime.environment import TELEMETRY_OFF
from gtvray.runtime.limits import usable_cpus, usable_memory_bytes
from gtvray.runtime.proxies import bypass_proxies
from gtvray.runtime.resources import Node, read_growth, read_nodes
from gtvray.runtime.temporary import ray_temp_folder
from gtvray.runtime.tokens import TOKEN_ADVICE, ensure_token, match_cluster
from gtvray.runtime.usage import without_usage_module

_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # Ray's object store, not a temporary file
_OBJECT_STORE_BYTES = 512 << 20
# Ray requires at least 75 MiB.
_LEAST_STORE_BYTES = 80 << 20
# Ray reads these when its modules are imported, in this process and in the processes that it starts.
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # A preempted node is handled as a lost worker: training resumes from its checkpoint.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ctrl-C must interrupt the command instead of ending the sweep as if it were complete.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes:
        address: host:port of its global control service (GCS).
        is_local: whether it was started by this process and ends with it.
        nodes: nodes that are alive.
        growth: nodes that an autoscaler can start, including those that it has already started.
    """

    address: str
    is_local: bool
    nodes: tuple[Node, ...]
    growth: tuple[Node, ...] = ()

    @property
    def cpus(self) -> float:
        """Total number of CPUs."""
        return sum(node.cpus * node.count for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Total number of GPUs."""
        return sum(node.gpus * node.count for node in self.nodes)


@contextmanager
def connect(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to a running cluster, or start a local one, for the duration of a `with` block.

    If this process is connected to the cluster already, by `ray.init` or an outer block, that connection is used and
    stays open.

    Args:
        address: address of a running cluster; "auto" finds one on this machine. None uses RAY_ADDRESS, which Ray sets
            in a job, and otherwise starts a local cluster. If the cluster requires a token, call `use_token` before
            Ray is imported.
        cpus: CPUs of a local cluster; None for all that this process may use.

    Raises:
        AuthError: the cluster requires a token; or it uses none, and Ray was imported with one.
        InputError: the address is that of Ray Client or of the dashboard, or this process is connected to another
            cluster.
        ResourceError: the cluster does not respond, or none can be started.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    bypass_proxies()
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto"):
        _require_gcs_address(str(address))
        _require_response(str(address))
    joined = _existing_connection(address)
    if joined is not None:
        yield joined
        return
    # Before the import of Ray, which reads the variables set here.
    if address:
        match_cluster(str(address))
    options = _remote_options(str(address)) if address else _local_options(cpus)
    import ray
    from ray.exceptions import AuthenticationError

    try:
        with without_usage_module(), free_agent_port():
            context = ray.init(**options)
    except AuthenticationError as error:
        raise AuthError("the Ray cluster requires a token", where=address, do=TOKEN_ADVICE) from error
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise ResourceError(
            "cannot connect to Ray" if address else "cannot start Ray on this machine",
            where=address,
            found=error,
            do="start one with `ray start --head`, or omit the address" if address else "run `gtvray doctor`",
        ) from error
    before, is_clean = os.environ.get("RAY_ADDRESS"), False
    try:
        gcs = str(context.address_info["gcs_address"])
        # Code that connects without an address must find this cluster, even if others run on this machine.
        os.environ["RAY_ADDRESS"] = gcs
        if address is None:
            # As `ray start` does: a submitted job finds its cluster there, or else picks one among all on this machine.
            ray._private.utils.write_ray_address(gcs, options["_temp_dir"])
        yield Cluster(gcs, address is None, read_nodes(ray.nodes()), read_growth())
        is_clean = True
    except KeyboardInterrupt:
        # Ctrl-C or SIGTERM is no fault that needs logs.
        is_clean = True
        raise
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()
        if address is None and is_clean:
            # After an error the folder is kept, as its logs may be needed.
            shutil.rmtree(options["_temp_dir"], ignore_errors=True)


def _existing_connection(address: str | None) -> Cluster | None:
    """The cluster that this process is connected to; None without a connection."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not ray.is_initialized():
        return None
    gcs = str(ray.get_runtime_context().gcs_address)
    if address not in (None, "auto", gcs):
        raise InputError(
            "this process is connected to another Ray cluster",
            expected=address,
            found=gcs,
            do="omit the address, or call ray.shutdown() first",
        )
    return Cluster(gcs, False, read_nodes(ray.nodes()), read_growth())


def this_machine(gpus: int) -> Node:
    """Return the resources of a cluster that would be started on this machine.

    Args:
        gpus: number of its GPUs.
    """
    return Node(float(usable_cpus()), float(gpus), float(_local_memory()[0]))


def _local_memory() -> tuple[int, int]:
    """Return the memory for tasks and that of the object store of a local cluster, in bytes."""
    memory = usable_memory_bytes()
    store = min(_OBJECT_STORE_BYTES, max(memory // 4, _LEAST_STORE_BYTES))
    return memory - store, store


def _local_options(cpus: int | None) -> dict[str, Any]:
    """Options of a local cluster within the resource limits of the container or job."""
    ensure_token()
    folder = ray_temp_folder()
    memory, store = _local_memory()
    options: dict[str, Any] = {
        # Without an address Ray would connect to the cluster last started on this machine.
        "address": "local",
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        # Ray uses the CPUs and memory of the host if the limits are not set on the root control group.
        "num_cpus": usable_cpus() if cpus is None else cpus,
        "object_store_memory": store,
        # By default Ray uses the memory that is free now, so that a momentary peak would limit the whole run.
        "_memory": memory,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "_temp_dir": folder,
    }
    if not os.path.isdir(_SHARED_MEMORY) or shutil.disk_usage(_SHARED_MEMORY).free < store:
        # Slower, but required with Docker's default of 64 MB; Ray does not start without /dev/shm.
        os.makedirs(folder, exist_ok=True)
        options["_plasma_directory"] = folder
    return options


def _remote_options(address: str) -> dict[str, Any]:
    """Options to join a cluster, whose processes have the environment of the shell that started it, not of this one."""
    names = (*_ENVIRONMENT, *TELEMETRY_OFF, FAILPOINTS, FAILPOINTS_ONCE)
    # In a submitted job Ray would reject variables that the job sets, too. They are equal: this process inherits them.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    return {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {name: os.environ[name] for name in names if name in os.environ}},
    }


def _require_gcs_address(address: str) -> None:
    """Reject addresses of other services of a cluster, such as Ray Client, which cannot run Tune, Train and Serve."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return
    host = rest.rpartition(":")[0] or rest
    if scheme == "ray":
        what, dashboard = "gtvray does not connect through Ray Client", f"http://{host}:8265"
    else:
        what, dashboard = "this is the address of a dashboard, not of a cluster's GCS", address
    raise InputError(
        what,
        where=address,
        expected="host:port of the GCS, such as head:6379, from a node of the cluster",
        do=f"run the command on the cluster: gtvray submit --address {dashboard} -- COMMAND",
    )


def _require_response(address: str) -> None:
    """Check with a TCP connection that the cluster responds, because Ray retries for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise ResourceError(
            "cannot connect to Ray",
            where=address,
            expected="host:port of a running cluster",
            found=error,
            do="start one with `ray start --head`, or omit the address",
        ) from error
