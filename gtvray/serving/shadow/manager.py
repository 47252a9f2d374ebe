"""The shadow version as a Serve application of its own, started beside the served one and removed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.errors import ResourceError
from gtvray.serving.app import build_model_app
from gtvray.serving.arguments import AppArguments
from gtvray.serving.shadow.records import Deliver
from gtvray.serving.versions.last import Candidate
from gtvray.serving.versions.manager import VersionManager, missing_resources
from gtvray.serving.versions.pointer import Pointer


@dataclass(frozen=True)
class ShadowPlan:
    """The shadow version, and the destination of its comparisons.

    Attributes:
        find: returns the version, fetched and verified; None while it must not run because it is the champion.
        versions: file for its state, readable from every node; records of comparisons are in a folder next to it.
        on_reject: called with a version that could not be started, and the reason.
        deliver: delivers records; see `gtvray.tracking.MetricQueue`.
    """

    find: Callable[[], Candidate | None]
    versions: Path
    on_reject: Callable[[Candidate, str], None]
    deliver: Deliver


class ShadowManager(VersionManager):
    """Starts the shadow version once the endpoint is ready, and removes it.

    Args:
        args: arguments of the application.
        plan: the shadow version.
        in_use: as in `VersionManager`.
        is_ready: returns whether the served version is ready; it must get its resources before the shadow does.
    """

    prefix = "gtvray-shadow"

    def __init__(
        self, args: AppArguments, plan: ShadowPlan, in_use: Callable[[str], int], is_ready: Callable[[], bool]
    ) -> None:
        super().__init__(args, Pointer(plan.versions), in_use, plan.on_reject)
        self._is_ready = is_ready

    def _step(self, find: Callable[[], Candidate | None]) -> None:
        found, current = find(), self._versions.current
        if found is None and current is not None:
            self._served = None
            self._update(current=None)
            self._drain(current)
        elif current is not None or self._is_ready():
            super()._step(lambda: found)

    def _application(self, args: AppArguments) -> Any:
        return build_model_app(args, shadow=True)

    def _require_resources(self) -> bool:
        serving = self._args.serving
        needed = {"GPU": serving.gpus_per_replica, "memory": serving.memory_gb_per_replica * 1e9}
        lacking = missing_resources(needed)
        if lacking:
            raise ResourceError(
                "the shadow version does not fit on the cluster alongside the served version",
                **lacking,
                do="free these resources, or add a node",
            )
        return False
