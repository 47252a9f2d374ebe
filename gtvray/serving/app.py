"""The Serve application: Api -> Model. Named by the import path of a Serve config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from gtvray.config import build, nested
from gtvray.errors import BundleError
from gtvray.serving.api import Api
from gtvray.serving.arguments import AppArguments
from gtvray.serving.auth import read_token
from gtvray.serving.model import Model

# /healthz, /readyz and refusals must get through while every place is taken.
_ROOM = 64


def build_app(args: Mapping[str, Any]) -> Any:
    """The application of `args` in a Serve config file.

    Args:
        args: the fields of AppArguments.

    Returns:
        a `ray.serve` Application.

    Raises:
        ConfigError: an unknown key, a value out of range, or no token.
        BundleError: no bundle, or no golden cases, at the place named.
    """
    where = "args of the Serve application"
    arguments = build(AppArguments, nested(args, where), where)
    read_token(arguments.token_file)
    if arguments.bundle is None:
        return _api(arguments).bind(arguments, None)
    if not (arguments.bundle / "manifest.json").is_file():
        raise BundleError("no bundle here", where=arguments.bundle, do="name a bundle's folder, seen from every node")
    if arguments.golden is not None and not (arguments.golden / "golden.json").is_file():
        raise BundleError("no golden cases here", where=arguments.golden, do="name their folder, seen from every node")
    return _api(arguments).bind(arguments, _model(arguments).bind(arguments))


def _api(args: AppArguments) -> Any:
    places = args.serving.max_pending + _ROOM
    return serve.deployment(
        serve.ingress()(Api),
        name="Api",
        max_ongoing_requests=places,
        max_queued_requests=places,
        ray_actor_options={"num_cpus": 0},
        **_patience(args),
    )


def _model(args: AppArguments) -> Any:
    serving = args.serving
    return serve.deployment(
        Model,
        name="Model",
        num_replicas=serving.model_replicas,
        max_ongoing_requests=serving.max_pending + _ROOM,
        ray_actor_options={"num_cpus": serving.cpus_per_replica, "num_gpus": serving.gpus_per_replica},
        **_patience(args),
    )


def _patience(args: AppArguments) -> dict[str, float]:
    """A draining replica may finish what it has; a dead one is noticed soon."""
    return {
        "graceful_shutdown_timeout_s": args.serving.timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2,
    }
