"""Starting and stopping the endpoint on the Ray cluster that this process is connected to."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, LoggingConfig

from gtvray.config import ServingConfig, TrackingConfig
from gtvray.errors import FailureError, NotReadyError, NotReproducedError, ResourceError
from gtvray.runtime import create_private_file, require_port
from gtvray.serving.app import build_app
from gtvray.serving.arguments import AppArguments, parse_arguments, read_shipped_config
from gtvray.serving.nodes import require_on_every_node, unshared_jobs
from gtvray.serving.probe import endpoint_url, probe
from gtvray.serving.problems import MEDIA_TYPE, error_of
from gtvray.serving.shadow import RecordSender, ShadowManager, ShadowPlan
from gtvray.serving.versions.last import Candidate, last_file
from gtvray.serving.versions.manager import VersionManager, status_text
from gtvray.serving.versions.pointer import Pointer, Versions

_ANSWER_TIMEOUT_S = 5.0
_DRAIN_S = ServingConfig().drain_s


@dataclass(frozen=True)
class Follow:
    """How an endpoint follows a champion.

    Attributes:
        find: returns the champion, fetched and verified; None before the first promotion.
        versions: file for the served version, readable from every node.
        on_reject: called with a version that could not be served, and the reason.
    """

    find: Callable[[], Candidate | None]
    versions: Path
    on_reject: Callable[[Candidate, str], None]


@dataclass(frozen=True)
class Server:
    """A running endpoint.

    Attributes:
        url: address of the endpoint, as reached from this machine.
        name: name of the Serve application.
        without_jobs: why it accepts no jobs although a folder for them was given; None if it accepts jobs.
    """

    url: str
    name: str
    _private: Path
    _drain_s: float = _DRAIN_S
    _managers: Mapping[str, VersionManager] = field(default_factory=dict)
    _model_name: str = ""
    _shadow: tuple[ShadowManager, RecordSender] | None = None
    without_jobs: str | None = None

    def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Wait until a model is loaded and has reproduced its golden cases.

        Raises:
            NotReproducedError: a golden case is not reproduced.
            FailureError: the model could not be started.
            NotReadyError: the model is not ready after `timeout_s`.
        """
        self._wait(self._ready, "the model", timeout_s)

    def wait_listening(self, timeout_s: float = 60.0) -> None:
        """Wait until the endpoint answers, with or without a model.

        Raises:
            FailureError: the gateway or the model could not be started.
            NotReadyError: it does not answer after `timeout_s`.
        """
        self._wait(lambda: probe(self.url, "/healthz") is not None, "the endpoint", timeout_s)

    def versions(self) -> Versions:
        """The served and the rejected versions of the default model; none if it does not follow the champion."""
        manager = self._managers.get(self._model_name)
        return manager.versions if manager is not None else Versions()

    def stop(self) -> None:
        """Stop the endpoint after the requests in progress have finished."""
        for manager in self._managers.values():
            manager.stop()
        if self._shadow is not None:
            self._shadow[0].stop()
        controller = _controller()
        if controller is not None:
            # serve.shutdown() lets Ray retry this call on the controller that has just exited, and Ray then prints a
            # warning to stdout.
            with suppress(RayActorError, GetTimeoutError):
                ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=self._drain_s)
        serve.shutdown()
        if self._shadow is not None:
            self._shadow[1].stop()
        shutil.rmtree(self._private, ignore_errors=True)

    def _wait(self, reached: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            status = serve.status().applications[self.name]
            message = status_text(status)
            if self._model_name in self._managers:
                self._managers[self._model_name].require_hopeful()
            if status.status == ApplicationStatus.DEPLOY_FAILED:
                raise FailureError(f"{what} could not be started", where=self.url, found=message)
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"{what} is not ready", where=self.url, expected=f"within {timeout_s:g} s", found=message
                )
            time.sleep(0.2)

    def _ready(self) -> bool:
        response = probe(self.url, "/readyz")
        if response is None:
            return False
        if response.headers.get("content-type") == MEDIA_TYPE:
            error = error_of(response.json(), self.url)
            if isinstance(error, NotReproducedError):
                raise error
        return response.status_code == httpx.codes.OK


def start_server(
    bundle_dir: Path | None,
    settings: ServingConfig,
    token: str,
    version: str = "unversioned",
    *,
    override: str = "",
    digest: str | None = None,
    golden: Path | None = None,
    token_file: Path | None = None,
    model_name: str = TrackingConfig().model_name,
    follow: Follow | None = None,
    further: Mapping[str, Follow] = MappingProxyType({}),
    jobs_dir: Path | None = None,
    tokens: Path | None = None,
    audit: Path | None = None,
    logs: Path | None = None,
    shadow: ShadowPlan | None = None,
) -> Server:
    """Deploy the shipped Serve config with a bundle; returns before the model is ready.

    Args:
        bundle_dir: folder of the bundle, readable from every node; None starts an endpoint that is not ready.
        settings: host, port, replicas and limits.
        token: bearer token that clients must send.
        version: version of the model in the registry.
        override: reason given for overriding the promotion gate; empty if it was not overridden.
        digest: digest that the bundle must have; None accepts any.
        golden: golden cases, readable from every node, that a replica must reproduce to become ready.
        token_file: file that contains the token on every node. Without it, a file is created on a cluster of one node,
            and the nodes of a larger cluster need GTVRAY_TOKEN in the environment of `ray start`.
        model_name: name of the registered model.
        follow: follow the champion without restarts, instead of serving a fixed bundle.
        further: further registered models by name, whose champions are served as well.
        jobs_dir: folder of the job store; None accepts no jobs. On several nodes jobs also need a common database,
            without which none are accepted; see `Server.without_jobs`.
        tokens: file of the clients' tokens, readable from every node.
        audit: folder of the audit log.
        logs: folder of the gateways' logs.
        shadow: version of the default model that is compared with the served one on a share of the requests.

    Raises:
        ConfigError: a node of the cluster lacks the token, the bundle or the golden cases.
        ResourceError: the port is in use, or this Ray cluster already runs Serve.
        BundleError: the folder holds no bundle, or no golden cases.
    """
    require_port(settings.host, settings.port, "serving.port")
    _check_no_serve()
    config = read_shipped_config()
    name = config["applications"][0]["name"]
    followed = {**({model_name: follow} if follow is not None else {}), **further}
    without_jobs = unshared_jobs() if jobs_dir is not None else None
    private = Path(tempfile.mkdtemp(prefix="gtvray-serve-"))
    try:
        folders = [folder for folder in (bundle_dir, golden) if folder is not None]
        args: dict[str, object] = {
            "bundle": bundle_dir,
            "digest": digest,
            "golden": golden,
            "version": version,
            "override": override,
            "model_name": model_name,
            "versions": follow.versions if follow is not None else None,
            "further_models": {name: each.versions for name, each in further.items()},
            "shadow": shadow.versions if shadow is not None else None,
            "token_file": _provide_token(token, token_file, private, folders),
            "jobs_dir": jobs_dir if without_jobs is None else None,
            "tokens": tokens,
            "audit": audit,
            "logs": logs,
            "serving": settings.model_dump(),
        }
        _clear_pointers([*followed.values(), *([shadow] if shadow is not None else [])])
        _deploy(config, args)
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    server = Server(endpoint_url(settings), name, private, settings.drain_s, without_jobs=without_jobs)
    try:
        server.wait_listening()
    except BaseException:
        server.stop()
        raise
    arguments = parse_arguments(args)
    managers = {model: _manage(arguments, name, model, each) for model, each in followed.items()}
    server = replace(server, _managers=managers, _model_name=model_name)
    return server if shadow is None else replace(server, _shadow=_manage_shadow(arguments, name, shadow, server.url))


def _provide_token(token: str, token_file: Path | None, private: Path, folders: list[Path]) -> Path | None:
    """Return a file with the token; None where each node has it in its environment.

    Raises:
        ConfigError: a node of the cluster lacks the token or a folder.
    """
    if sum(row["Alive"] for row in ray.nodes()) > 1:
        require_on_every_node(token, token_file, folders)
    elif token_file is None:
        # The token is passed in a file that only its owner can read, as arguments are shown in Ray's dashboard.
        token_file = private / "token"
        create_private_file(token_file, token)
    return token_file


def _clear_pointers(plans: Iterable[Follow | ShadowPlan]) -> None:
    """Reset the version files: no version is served until a version manager has started one."""
    for plan in plans:
        plan.versions.parent.mkdir(parents=True, exist_ok=True)
        Pointer(plan.versions).write(Versions())


def _manage(args: AppArguments, name: str, model: str, follow: Follow) -> VersionManager:
    args = args.model_copy(update={"model_name": model})
    last = last_file(follow.versions)
    manager = VersionManager(args, Pointer(follow.versions), _in_use(name), follow.on_reject, last)
    manager.follow(follow.find, args.serving.follow_s)
    return manager


def _manage_shadow(args: AppArguments, name: str, plan: ShadowPlan, url: str) -> tuple[ShadowManager, RecordSender]:
    def is_ready() -> bool:
        response = probe(url, "/readyz")
        return response is not None and response.status_code == httpx.codes.OK

    manager = ShadowManager(args, plan, _in_use(name), is_ready)
    manager.follow(plan.find, args.serving.follow_s)
    return manager, RecordSender(plan.versions, plan.deliver, args.serving.follow_s)


def _in_use(name: str) -> Callable[[str], int]:
    def in_use(app: str) -> int:
        """Return the requests in progress as reported by a gateway; 0 if none responds, as it then processes none."""
        try:
            return int(serve.get_app_handle(name).in_use.remote(app).result(timeout_s=_ANSWER_TIMEOUT_S))
        except (RayError, RayServeException, TimeoutError):
            return 0

    return in_use


def _deploy(config: dict[str, Any], args: dict[str, object]) -> None:
    (application,) = config["applications"]
    target = serve.RunTarget(
        build_app(args),
        name=application["name"],
        route_prefix=application["route_prefix"],
        logging_config=LoggingConfig(**application["logging_config"]),
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=config["proxy_location"],
        logging_config=LoggingConfig(**config["logging_config"]),
    )
    serve.run_many([target], wait_for_applications_running=False)


def _check_no_serve() -> None:
    if _controller() is not None:
        raise ResourceError(
            "this Ray cluster already runs Serve",
            do="stop it with `serve shutdown`, or deploy serve/config.yaml to it with `serve deploy`",
        )


def _controller() -> Any:
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", "serve")
    except ValueError:
        return None
