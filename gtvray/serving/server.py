"""The endpoint on the Ray cluster this process is connected to."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, LoggingConfig

from gtvray.config import ServingConfig, build
from gtvray.errors import FailureError, NotReadyError, NotReproducedError, ResourceError
from gtvray.io import decode_text
from gtvray.runtime import require_port
from gtvray.serving.app import build_app
from gtvray.serving.arguments import DeployFile
from gtvray.serving.problems import MEDIA_TYPE, error_of
from gtvray.serving.transport import open_client

_STOP_WITHIN_S = 60.0


@dataclass(frozen=True)
class Server:
    """A running endpoint.

    Attributes:
        url: where it listens.
        name: the Serve application.
    """

    url: str
    name: str
    _private: Path

    def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Return once a warm model answers, which it does when it has reproduced its golden cases.

        Raises:
            NotReproducedError: it has not, and says which.
            FailureError: the model could not be started.
            NotReadyError: it takes longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready():
            status = serve.status().applications[self.name]
            said = " ".join(line for line in status.message.splitlines() if line.strip())[-250:]
            if status.status == ApplicationStatus.DEPLOY_FAILED:
                raise FailureError("the model could not be started", where=self.url, found=said)
            if time.monotonic() > deadline:
                raise NotReadyError("the model is not warm", where=self.url, expected=f"{timeout_s:g} s", found=said)
            time.sleep(0.2)

    def stop(self) -> None:
        """Take the endpoint down; requests under way are finished first."""
        controller = _controller()
        if controller is not None:
            # serve.shutdown() lets Ray retry this call on the controller it has just ended, and Ray then prints a
            # warning on stdout.
            with suppress(RayActorError, GetTimeoutError):
                ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=_STOP_WITHIN_S)
        serve.shutdown()
        shutil.rmtree(self._private, ignore_errors=True)

    def _ready(self) -> bool:
        try:
            with open_client(self.url, timeout_s=5) as client:
                answer = client.get(f"{self.url}/readyz")
        except httpx.TransportError:
            return False
        if answer.headers.get("content-type") == MEDIA_TYPE:
            error = error_of(answer.json(), self.url)
            if isinstance(error, NotReproducedError):
                raise error
        return answer.status_code == httpx.codes.OK


def start_server(
    bundle_dir: Path | None,
    settings: ServingConfig,
    token: str,
    version: str = "unversioned",
    *,
    digest: str | None = None,
    golden: Path | None = None,
) -> Server:
    """Deploy the shipped Serve config with a bundle; returns before the model is warm.

    Args:
        bundle_dir: the bundle, seen from every node; None starts an endpoint that says it is not ready.
        settings: host, port, size and limits.
        token: what clients must bear.
        version: the model's version as the registry counts it.
        digest: the bundle's, if another one must be refused.
        golden: the model's golden cases, seen from every node, to be reproduced before it is ready.

    Raises:
        ResourceError: the port is taken, or this Ray cluster already runs Serve.
        BundleError: no bundle, or no golden cases, there.
    """
    require_port(settings.host, settings.port, "serving.port")
    _check_no_serve()
    file = read_deploy_file()
    private = Path(tempfile.mkdtemp(prefix="gtvray-serve-"))
    try:
        # A file only its owner can read: arguments show in Ray's dashboard.
        token_file = private / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token)
        args = {"bundle": bundle_dir, "digest": digest, "golden": golden, "version": version}
        _deploy(file, {**args, "token_file": token_file, "serving": settings.model_dump()}, settings)
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return Server(_url(settings.host, settings.port), file.applications[0].name, private)


def _url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def read_deploy_file() -> DeployFile:
    """The shipped Serve config, `serve/config.yaml`."""
    source = resources.files("gtvray.deploy") / "config.yaml"
    return build(DeployFile, yaml.safe_load(decode_text(source.read_bytes(), source)), source)


def _deploy(file: DeployFile, args: dict[str, object], settings: ServingConfig) -> None:
    application = file.applications[0]
    target = serve.RunTarget(
        build_app(args),
        name=application.name,
        route_prefix=application.route_prefix,
        logging_config=LoggingConfig(**application.logging_config),
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=file.proxy_location,
        # Ours speaks first, with a problem document; Serve's is the backstop.
        http_options=HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=settings.timeout_s + 30),
        logging_config=LoggingConfig(**file.logging_config),
    )
    serve.run_many([target], wait_for_applications_running=False)


def _check_no_serve() -> None:
    if _controller() is not None:
        raise ResourceError(
            "this Ray cluster already runs Serve, and its address cannot be changed",
            do="stop it with `serve shutdown`, or deploy serve/config.yaml to it with `serve deploy`",
        )


def _controller() -> Any:
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", "serve")
    except ValueError:
        return None
