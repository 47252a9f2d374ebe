"""The Ray Serve application, Gateway -> Model, which Serve config files reference by import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from gtvray.errors import BundleError, ConfigError
from gtvray.serving.arguments import AppArguments, parse_arguments, read_token
from gtvray.serving.gateway.deployment import Gateway
from gtvray.serving.nodes import count_nodes, one_per_node
from gtvray.serving.replica.deployment import Model
from gtvray.serving.scaling import scaling_options
from gtvray.serving.shadow.model import ShadowModel
from gtvray.serving.tracing import require_sender

# Requests beyond max_pending that a deployment accepts, so that probes and rejections get through at capacity.
_SPARE_REQUESTS = 64
_MOST_NODES = 10_000


def build_app(args: Mapping[str, Any]) -> Any:
    """Build the application from `args` of a Serve config file.

    Args:
        args: the fields of AppArguments.

    Returns:
        a `ray.serve` Application.

    Raises:
        ConfigError: an unknown key, a value out of range, no token, the package for traces is not installed, or a
            shadow version is set without `gtvray serve`.
        BundleError: the folder holds no bundle, or no golden cases.
    """
    arguments = parse_arguments(args)
    read_token(arguments.token_file)
    require_sender(arguments.serving.traces_url)
    if arguments.serving.shadow_version is not None and arguments.shadow is None:
        raise ConfigError(
            "a shadow version needs the process of `gtvray serve`",
            where="serving.shadow_version",
            do="remove serving.shadow_version, or start the endpoint with `gtvray serve`",
        )
    if arguments.bundle is None or arguments.versions is not None:
        return _gateway(arguments).bind(arguments, None)
    return _gateway(arguments).bind(arguments, build_model_app(arguments))


def build_model_app(arguments: AppArguments, *, shadow: bool = False) -> Any:
    """Build the application of one version, without HTTP routes.

    Args:
        arguments: arguments of the application, with the bundle, digest and golden cases of the version.
        shadow: whether it is a shadow version, which has one replica, reserves no CPU and runs at the lowest priority.

    Raises:
        BundleError: the folder holds no bundle, or no golden cases.
    """
    if arguments.bundle is None:
        raise BundleError("no bundle to serve", do="specify the folder of a bundle")
    if not (arguments.bundle / "manifest.json").is_file():
        raise BundleError(
            "no bundle in this folder", where=arguments.bundle, do="specify a bundle folder that every node can read"
        )
    if arguments.golden is not None and not (arguments.golden / "golden.json").is_file():
        raise BundleError(
            "no golden cases in this folder",
            where=arguments.golden,
            do="specify the folder of the golden cases, readable from every node",
        )
    return _model(arguments, shadow).bind(arguments)


def _gateway(args: AppArguments) -> Any:
    return serve.deployment(
        Gateway,
        name="Gateway",
        max_ongoing_requests=_SPARE_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        max_replicas_per_node=1,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            initial_replicas=count_nodes(),
            max_replicas=_MOST_NODES,
            upscale_delay_s=1,
            downscale_delay_s=30,
            policy=AutoscalingPolicy(policy_function=one_per_node),
        ),
        **_lifecycle_options(args, health_check_period_s=1),
    )


def _model(args: AppArguments, shadow: bool) -> Any:
    serving = args.serving
    return serve.deployment(
        ShadowModel if shadow else Model,
        name="Model",
        max_ongoing_requests=serving.max_pending + _SPARE_REQUESTS,
        ray_actor_options={
            "num_cpus": 0 if shadow else serving.cpus_per_replica,
            "num_gpus": serving.gpus_per_replica,
            "memory": serving.memory_gb_per_replica * 1e9,
        },
        **({"num_replicas": 1} if shadow else scaling_options(serving)),
        **_lifecycle_options(args, health_check_period_s=2),
    )


def _lifecycle_options(args: AppArguments, health_check_period_s: float) -> dict[str, float]:
    """Let a draining replica finish its requests, and detect a dead one within seconds."""
    return {
        "graceful_shutdown_timeout_s": args.serving.timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": health_check_period_s,
    }
