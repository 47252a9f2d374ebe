"""A small cluster on this machine: a Ray head, an MLflow server and the endpoint, each a process of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gtvray.api.arguments import PathLike, as_config
from gtvray.api.registry import is_folder, open_registry
from gtvray.errors import FailureError, NotReadyError
from gtvray.io import Workspace, read_json, write_json
from gtvray.runtime import (
    SILENT,
    Process,
    ProgressReporter,
    create_private_file,
    require_port,
    start_service,
    stop_service,
    usable_cpus,
)

_HOST = "127.0.0.1"
_STATE = "services.json"
_POLL_S = 0.5
_ANSWER_S = 5.0
_START_S = 180.0
_STOP_S = 60.0
# `ray start` without the module that queries cloud metadata and reports that usage reports are off.
_HEAD = """
from gtvray.runtime import without_usage_module
from ray.scripts.scripts import main
with without_usage_module():
    main()
"""


@dataclass(frozen=True)
class LocalPorts:
    """Ports on this machine.

    Attributes:
        ray: port of the GCS; not between 10002 and 19999, which Ray assigns to workers.
        dashboard: port of the dashboard, to which jobs are submitted.
        mlflow: port of the tracking server.
        endpoint: port of the HTTP endpoint.
    """

    ray: int = 6379
    dashboard: int = 8265
    mlflow: int = 5000
    endpoint: int = 8000


@dataclass(frozen=True)
class ServiceHealth:
    """State of a service.

    Attributes:
        service: ray, mlflow or endpoint.
        state: healthy, unhealthy, ended, or stopped if it was not started.
        address: address of the service.
        detail: why it is not healthy; None if it is.
        pid: id of its process; None if it was not started.
        log: file with its output.
    """

    service: str
    state: str
    address: str
    detail: str | None
    pid: int | None
    log: Path


@dataclass
class LocalCluster:
    """The services of a local cluster, whose state is kept in a folder between commands.

    Attributes:
        folder: folder for tokens, process ids and logs.
        workspace: workspace that MLflow and the endpoint serve.
        ports: ports of the services; running services keep theirs.
        model: model that the endpoint serves: folder of a bundle, a registered version, or `champion`.
        cpus: CPUs of the Ray head; None for all.
        database: URI of a PostgreSQL database for MLflow; None uses SQLite in the workspace.
        show: receives progress.
    """

    folder: Path
    workspace: Workspace
    ports: LocalPorts = field(default_factory=LocalPorts)
    model: str = "champion"
    cpus: int | None = None
    database: str | None = None
    show: ProgressReporter = SILENT

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self._state: dict[str, Any] = {"mark": secrets.token_hex(16), "services": {}}
        if (self.folder / _STATE).exists():
            self._state = read_json(self.folder / _STATE)
            self.ports = LocalPorts(**self._state["ports"])

    @property
    def tracking_uri(self) -> str:
        """URI of the MLflow server."""
        return f"http://{_HOST}:{self.ports.mlflow}"

    @property
    def ray_token(self) -> Path:
        """File with the token of the Ray cluster."""
        return self.folder / "ray-token"

    @property
    def endpoint_token(self) -> Path:
        """File with the bearer token of the endpoint."""
        return self.folder / "endpoint-token"

    def up(self, *, mlflow: bool = True, endpoint: bool = True) -> list[ServiceHealth]:
        """Start the services that are not running, and wait until they are healthy.

        An endpoint that serves the champion is not started before the first promotion.

        Args:
            mlflow: start the MLflow server.
            endpoint: start the endpoint, which needs the MLflow server.

        Raises:
            ResourceError: a port is in use; nothing was started.
            FailureError: a service did not start; the services started by this call were stopped again.
        """
        wanted = ["ray", *(["mlflow"] if mlflow else []), *(["endpoint"] if mlflow and endpoint else [])]
        missing = [name for name in wanted if not self._is_running(name)]
        for name in missing:
            # Stop the remaining processes of a service that has ended.
            self._stop(name)
        self._require_ports(missing)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        started: list[str] = []
        try:
            for name, command in (("ray", self._head), ("mlflow", self._mlflow), ("endpoint", self._endpoint)):
                if name in missing and (name != "endpoint" or self._has_model()):
                    self.show.begin(name, f"starting {name}")
                    started.append(name)
                    self._start(name, command())
                    self._wait(name)
        except BaseException:
            for name in reversed(started):
                self._stop(name)
            raise
        return self.status()

    def down(self) -> int:
        """Stop every service and keep its log; return how many processes had to be killed."""
        killed = 0
        for name in ("endpoint", "mlflow", "ray"):
            if name in self._state["services"]:
                self.show.begin(name, f"stopping {name}")
                killed += self._stop(name)
        return killed

    def status(self) -> list[ServiceHealth]:
        """State of every service."""
        return [self._health(name) for name in ("ray", "mlflow", "endpoint")]

    def _health(self, name: str) -> ServiceHealth:
        address = {
            "ray": f"{_HOST}:{self.ports.ray}, dashboard http://{_HOST}:{self.ports.dashboard}",
            "mlflow": self.tracking_uri,
            "endpoint": f"http://{_HOST}:{self.ports.endpoint}",
        }[name]
        stored = self._state["services"].get(name)
        if stored is None:
            waits = name == "endpoint" and self._is_running("mlflow")
            detail = "no model has been promoted, or it was not requested" if waits else "not started"
            return ServiceHealth(name, "stopped", address, detail, None, self._log(name))
        if not self._is_running(name):
            return ServiceHealth(name, "ended", address, self._last_line(name), stored["pid"], self._log(name))
        reason = self._probe(name)
        state = "healthy" if reason is None else "unhealthy"
        return ServiceHealth(name, state, address, reason, stored["pid"], self._log(name))

    def _probe(self, name: str) -> str | None:
        """Why a service does not answer; None if it does."""
        ports, token = self.ports, {}
        if name == "ray":
            token = {"Authorization": f"Bearer {_read(self.ray_token)}"}
        url = {
            "ray": f"http://{_HOST}:{ports.dashboard}/api/jobs/",
            "mlflow": f"{self.tracking_uri}/health",
            "endpoint": f"http://{_HOST}:{ports.endpoint}/readyz",
        }[name]
        try:
            # Not through a proxy of the environment.
            response = httpx.get(url, headers=token, timeout=_ANSWER_S, trust_env=False)
        except httpx.TransportError as error:
            return f"{url} does not answer: {error}"
        return None if response.is_success else f"{url} answers {response.status_code}"

    def _require_ports(self, missing: list[str]) -> None:
        options = {
            "ray": (("--ray-port", self.ports.ray), ("--dashboard-port", self.ports.dashboard)),
            "mlflow": (("--mlflow-port", self.ports.mlflow),),
            "endpoint": (("--port", self.ports.endpoint),),
        }
        for name in missing:
            for option, port in options[name]:
                require_port(_HOST, port, option)

    def _head(self) -> tuple[list[str], dict[str, str]]:
        _new_token(self.ray_token)
        # With sessions in /tmp/ray, every ray.init() on this machine would join this head. A short path for sockets.
        sessions = tempfile.mkdtemp(prefix="gtvray-ray.", dir="/tmp")  # made with mode 0700
        self._state["sessions"] = sessions
        ports = ["--port", str(self.ports.ray), "--dashboard-port", str(self.ports.dashboard)]
        # Ray's agent has a fixed port by default, which a second head on the machine could not use.
        ports += ["--dashboard-agent-listen-port", "0", "--dashboard-host", _HOST]
        # In a batch job or container, Ray would count the CPUs of the host.
        cpus = ["--num-cpus", str(self.cpus or usable_cpus())]
        command = [sys.executable, "-c", _HEAD, "start", "--head", "--block", "--temp-dir", sessions, *ports, *cpus]
        return command, self._environment()

    def _mlflow(self) -> tuple[list[str], dict[str, str]]:
        # Records where the workspace is before its database exists.
        with self.workspace.lock():
            artifacts = self.workspace.artifacts
        command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(self.ports.mlflow)]
        command += ["--workers", "1", "--no-serve-artifacts", "--default-artifact-root", str(artifacts)]
        # Passed in the environment: the URI may contain a password, and command lines are visible to all users.
        uri = {"MLFLOW_BACKEND_STORE_URI": self.database or self.workspace.mlflow_uri}
        return command, self._environment() | uri | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def _endpoint(self) -> tuple[list[str], dict[str, str]]:
        _new_token(self.endpoint_token)
        command = [sys.executable, "-m", "gtvray", "serve", "--address", f"{_HOST}:{self.ports.ray}"]
        model = str(Path(self.model).resolve()) if is_folder(self.model) else self.model
        command += ["--model", model, "--port", str(self.ports.endpoint), "--token-file", str(self.endpoint_token)]
        command += ["--workspace", str(self.workspace.root), f"tracking.uri={self.tracking_uri}"]
        return command, self._environment()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.ray_token)}
        return kept | token | {"RAY_USAGE_STATS_ENABLED": "0"}

    def _has_model(self) -> bool:
        from gtvray.registry import CHAMPION

        if self.model != CHAMPION:
            return True
        config = as_config({"tracking.uri": self.tracking_uri})
        try:
            open_registry(self.workspace, config, writing=False).champion()
        except NotReadyError:
            return False
        return True

    def _start(self, name: str, command: tuple[list[str], dict[str, str]]) -> None:
        process = start_service(*command, self._log(name), self._mark(name))
        self._state["services"][name] = asdict(process)
        self._state["ports"] = asdict(self.ports)
        write_json(self.folder / _STATE, self._state)

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + _START_S
        while (reason := self._probe(name)) is not None:
            if not self._is_running(name) or time.monotonic() > deadline:
                raise FailureError(
                    f"{name} did not start",
                    where=self._log(name),
                    found=reason if self._is_running(name) else self._last_line(name),
                    do="see its log; the services that this command started were stopped again",
                )
            time.sleep(_POLL_S)

    def _stop(self, name: str) -> int:
        stored = self._state["services"].pop(name, None)
        if stored is None:
            return 0
        killed = stop_service(Process(**stored), self._mark(name), _STOP_S)
        if name == "ray":
            shutil.rmtree(self._state.pop("sessions", ""), ignore_errors=True)
        if self._state["services"]:
            write_json(self.folder / _STATE, self._state)
        else:
            for file in (self.ray_token, self.endpoint_token, self.folder / _STATE):
                file.unlink(missing_ok=True)
        return killed

    def _is_running(self, name: str) -> bool:
        stored = self._state["services"].get(name)
        return stored is not None and Process(**stored).is_alive

    def _mark(self, name: str) -> str:
        return f"{self._state['mark']}-{name}"

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _last_line(self, name: str) -> str:
        lines = _read(self._log(name)).strip().splitlines()
        return f"it has ended: {lines[-1]}" if lines else "it has ended"


def default_cluster_folder() -> Path:
    """Folder for the state of the services of this user."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "gtvray-cluster"


def _new_token(path: PathLike) -> None:
    """Write a new token that only this user can read."""
    Path(path).unlink(missing_ok=True)
    create_private_file(path, secrets.token_hex(32))


def _read(path: Path) -> str:
    from gtvray.io import read_text

    return read_text(path) if path.exists() else ""
