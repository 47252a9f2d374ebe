"""How many trials fit on a cluster at once."""

from __future__ import annotations

from dataclasses import dataclass

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError


@dataclass(frozen=True)
class ResourcePlan:
    """Trials side by side, and what each takes."""

    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float


def plan_trials(training: TrainingConfig, cpus: float, gpus: float, wanted: int | None) -> ResourcePlan:
    """Fit trials into a cluster.

    Tune does not count the workers that a trial starts through Ray Train, so the number of trials is bounded here.

    Raises:
        ResourceError: not even one trial fits.
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
