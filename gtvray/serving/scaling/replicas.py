"""Replica counts of a model, from Ray Serve's controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

_STARTING = ("STARTING", "UPDATING", "RECOVERING")


@dataclass(frozen=True)
class ReplicaCounts:
    """Replicas of a model.

    Attributes:
        running: replicas that are ready to process scans.
        starting: replicas that load the model or wait for cluster resources.
    """

    running: int
    starting: int


def count_replicas(app: str) -> ReplicaCounts | None:
    """Count the model replicas of a Serve application; None if it does not exist or Serve does not respond."""
    # Otherwise Serve would connect to any cluster that it finds.
    if not ray.is_initialized():
        return None
    try:
        application = serve.status().applications.get(app)
    except (RayError, RayServeException):
        return None
    if application is None or "Model" not in application.deployments:
        return None
    # Plain strings, whatever their type hint says; the members of Serve's enumeration are strings too.
    states: Mapping[Any, int] = application.deployments["Model"].replica_states
    return ReplicaCounts(states.get("RUNNING", 0), sum(states.get(name, 0) for name in _STARTING))
