"""The autoscaling policy of the model, by the estimated seconds of waiting patches.

Ray Serve calls it in its controller, and applies limits and delays to what it returns.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from gtvray.config import ServingConfig
from gtvray.serving.scaling.load import QUEUED_S, SCANS

# Longer than the 10 s between two reports. With zero replicas, a request keeps requesting one this long after its end.
_LOOK_BACK_S = 12.0


class PatchSecondsPolicy:
    """Request as many replicas as keep the queue of each below a number of seconds.

    All patches of a scan are run by one replica, so there are never more replicas than scans.

    Args:
        replica_queue_s: seconds of waiting patches above which another replica is started.
    """

    def __init__(self, replica_queue_s: float) -> None:
        self._replica_queue_s = replica_queue_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and no state."""
        reported = context.raw_metrics or {}
        # With zero replicas, Serve itself starts one for a waiting request; a starting replica has not reported yet.
        if not context.current_num_replicas or not reported.get(SCANS):
            return context.target_num_replicas, {}
        scans = sum(points[-1].value for points in reported[SCANS].values() if points)
        queued_s = sum(points[-1].value for points in reported[QUEUED_S].values() if points)
        # A scan needs its replica until its mask is complete, even when no patch is waiting.
        return min(int(scans), max(1, math.ceil(queued_s / self._replica_queue_s))), {}


def scaling_options(serving: ServingConfig) -> dict[str, Any]:
    """Options of the Model deployment for the number of its replicas."""
    if serving.max_model_replicas is None:
        return {"num_replicas": serving.model_replicas}
    config = AutoscalingConfig(
        min_replicas=serving.model_replicas,
        initial_replicas=serving.initial_replicas,
        max_replicas=serving.max_model_replicas,
        look_back_period_s=_LOOK_BACK_S,
        # The interval between reports is a sufficient delay.
        upscale_delay_s=0,
        downscale_delay_s=serving.replica_idle_s,
        policy=AutoscalingPolicy(
            policy_function=PatchSecondsPolicy, policy_kwargs={"replica_queue_s": serving.replica_queue_s}
        ),
    )
    return {"autoscaling_config": config}
