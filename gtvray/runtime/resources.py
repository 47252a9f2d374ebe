"""Number of concurrent trials on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError


@dataclass(frozen=True)
class ResourcePlan:
    """Number of concurrent trials and the resources of each."""

    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float


def plan_trials(training: TrainingConfig, cpus: float, gpus: float, wanted: int | None) -> ResourcePlan:
    """Determine how many trials run concurrently.

    The number is limited here, because Tune does not account for the workers that a trial starts through Ray Train.

    Args:
        training: training settings of a trial.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        wanted: maximum number of concurrent trials; None for as many as fit.

    Raises:
        ResourceError: the cluster is too small for one trial.
    """
    need_cpus = float(training.num_workers * training.cpus_per_worker)
    need_gpus = float(training.num_workers * training.gpus_per_worker if training.use_gpu else 0)
    fit = int(cpus // need_cpus)
    if need_gpus:
        # Shares such as 0.1 are not exact in binary.
        fit = min(fit, int(gpus / need_gpus + 1e-9))
    if fit < 1:
        raise ResourceError(
            "a trial does not fit on this cluster",
            expected=f"{need_cpus:g} CPUs and {need_gpus:g} GPUs",
            found=f"{cpus:g} CPUs and {gpus:g} GPUs",
            do="lower training.num_workers or training.cpus_per_worker"
            + (", or set training.use_gpu=false" if need_gpus > gpus else ""),
        )
    return ResourcePlan(min(fit, wanted or fit), need_cpus, need_gpus)
