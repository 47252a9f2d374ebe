"""Prediction of scans on a cluster: the checks before it starts, and the pool of actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gtvray.batch.planning import estimate_memory_bytes, plan_pool
from gtvray.batch.pool import ActorPool
from gtvray.batch.steps import PredictorOpener, Result, Scan
from gtvray.experiments import require_storage
from gtvray.runtime import Cluster, ProgressReporter, shown_waiting


@dataclass(frozen=True)
class ClusterPredictor:
    """Predict scans on the connected cluster.

    Attributes:
        cluster: the connected cluster.
        opener: loads the model in each process; its device is set here.
        read: files and folders that every node must be able to read.
        gpus: GPUs of each process; None for 1 if the cluster has GPUs.
        memory_bytes: memory of each process; None for an estimate.
        on_gpu: whether the backend of the model runs on GPUs.
        wait_s: maximum wait for resources in seconds.
        show: receives progress.
    """

    cluster: Cluster
    opener: PredictorOpener
    read: Sequence[Path]
    gpus: float | None
    memory_bytes: int | None
    on_gpu: bool
    wait_s: float
    show: ProgressReporter

    def __call__(self, scans: Sequence[Scan], started: Callable[[Scan], None], ended: Callable[[Result], None]) -> None:
        """Predict scans.

        Raises:
            ResourceError: a node cannot access the files, or no process fits or starts.
            GtvrayError: no process could load the model.
        """
        # A missing scan has an error of its own, which is better than one about storage.
        seen = [path for path in self.read if path.exists()]
        require_storage(self.cluster, scans[0].mask.parent, *seen)
        needed = self.memory_bytes or estimate_memory_bytes([scan.path for scan in scans])
        threads = self.opener.threads
        plan = plan_pool(
            self.cluster, len(scans), threads=threads, gpus=self.gpus, memory_bytes=needed, on_gpu=self.on_gpu
        )
        opener = replace(self.opener, device=plan.device)
        self.show.begin("predict", f"{len(scans)} scans, {plan.actors} processes with {plan.needs.as_text()} each")
        # Processes may have other working directories.
        absolute = [replace(scan, path=scan.path.absolute(), mask=scan.mask.absolute()) for scan in scans]
        with shown_waiting(self.show):
            ActorPool(opener, plan, wait_s=self.wait_s, started=started, ended=ended).run(absolute)
