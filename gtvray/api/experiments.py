"""Training runs and sweeps, from a folder of cases to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_changes, as_config, as_workspace
from gtvray.config import SweepConfig, load_sweep
from gtvray.errors import InputError
from gtvray.io import Workspace
from gtvray.runtime import SILENT, Cluster, ProgressReporter, connect, given_run_id, new_run_id

if TYPE_CHECKING:
    from gtvray.crossval import FoldStatus, TrainOutcome
    from gtvray.training import Plan
    from gtvray.tuning import SweepOutcome
    from gtvray.tuning.describe import SweepDescription

# A file system accepts names of 255 bytes; names of bundles and temporary files are longer than that of the run.
_NAME_BYTES = 100


@dataclass(frozen=True)
class SweepRun:
    """A finished sweep.

    Attributes:
        name: of the sweep, for `resume`.
        outcome: trials, bundle of the best trial, MLflow runs and the HTML page of the trials.
    """

    name: str
    outcome: SweepOutcome


def train(
    data: PathLike | None = None,
    *,
    config: ConfigLike = None,
    fold: int | Literal["all"] | None = None,
    folds: int = 5,
    resume: str | None = None,
    name: str = "api",
    workspace: Workspace | PathLike = WORKSPACE,
    address: str | None = None,
    show: ProgressReporter = SILENT,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_folds: Callable[[list[FoldStatus]], None] = lambda _: None,
) -> TrainOutcome:
    """Train one network, or all folds of a cross-validation, and write a bundle.

    Args:
        data: dataset with masks; not with `resume`.
        config: settings of the training; with `resume` a mapping of changes that do not affect the result, such as
            `tracking.uri`.
        fold: number of a fold, `all`, or None for the training cases of the split.
        folds: number of folds.
        resume: name of an interrupted training, which has its own data and settings.
        name: part of the name of a new training.
        workspace: folder for all output.
        address: running Ray cluster; by default one is started on this machine.
        show: receives progress.
        on_plan: called with the plan before training starts.
        on_folds: called with the status of all folds after every change.

    Raises:
        InputError: the data or settings cannot be used.
        ResourceError: the training does not fit on the cluster, another process runs it, or MLflow does not answer.
        TrainingError: every fold failed.
    """
    from gtvray.crossval import TrainJob, TrainRequest

    folders = as_workspace(workspace)
    if (data is None) == (resume is None):
        raise InputError(
            "a training run needs data, or the name of a run to resume",
            expected="exactly one of `data` and `resume`",
            do="pass `data` for a new run, or `resume` to continue one",
        )
    request = None if data is None else TrainRequest(as_config(config), Path(data), fold, folds)
    run = resume or _run_name(f"train-{_short_name(Path(name))}")
    with folders.lock(folders.trainings / run):
        if request is None:
            job = TrainJob.resumed(run, folders, show, on_folds, as_changes(config))
        else:
            job = TrainJob.started(request, folders, run, show, on_folds)
        project, planned = job.open()
        on_plan(job.plan(project))
        show.begin("ray", "connecting to Ray")
        with connect(address) as cluster:
            return job.run(project, planned, cluster)


def sweep(
    space: SweepConfig | PathLike,
    data: PathLike,
    *,
    config: ConfigLike = None,
    resume: str | None = None,
    extend: int = 0,
    base_name: str | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    address: str | None = None,
    show: ProgressReporter = SILENT,
    on_start: Callable[[str], None] = lambda _: None,
) -> SweepRun:
    """Run a hyperparameter search and write the bundle of the best trial.

    Args:
        space: a search space, or its YAML file.
        data: dataset with masks.
        config: values of the settings that the search space does not set.
        resume: name of an earlier sweep, which continues with the settings it was started with. One that is finished
            is returned as it is.
        extend: number of further trials of the sweep to resume.
        base_name: file name that a new sweep is named after; by default that of the space.
        workspace: folder for all output.
        address: running Ray cluster; by default one is started on this machine.
        show: receives progress.
        on_start: called with the name of the sweep once it can be resumed, before a cluster is touched.

    Raises:
        InputError: the data or settings cannot be used, or differ from those of the sweep to resume.
        ResourceError: a trial does not fit on the cluster, another process runs the sweep, or MLflow does not answer.
        TrainingError: no trial completed an epoch.
    """
    spec = space if isinstance(space, SweepConfig) else load_sweep(Path(space))
    settings, folders = as_config(config), as_workspace(workspace)
    # Invalid settings are refused before Ray and torch are loaded.
    from gtvray.tuning import SweepJob

    if extend and resume is None:
        raise InputError("only an earlier sweep can be extended", do="name it with --resume")
    base = Path(base_name or ("sweep" if isinstance(space, SweepConfig) else Path(space).name))
    name = resume or _run_name(_short_name(base))
    with folders.lock(folders.sweeps / name):
        job = SweepJob(spec, settings, folders, name, show, extend)
        if resume is not None:
            job.require_started()
        project = job.open(Path(data))
        outcome = job.finished(project)
        on_start(name)
        if outcome is None:
            show.begin("ray", "connecting to Ray")
            with connect(address) as cluster:
                outcome = job.run(project, cluster)
    return SweepRun(name, outcome)


def describe_sweep(
    space: SweepConfig | PathLike,
    data: PathLike | None = None,
    *,
    config: ConfigLike = None,
    workspace: Workspace | PathLike = WORKSPACE,
    address: str | None = None,
    show: ProgressReporter = SILENT,
) -> SweepDescription:
    """Describe a sweep without running it.

    Args:
        space: a search space, or its YAML file.
        data: dataset with masks, which is prepared and checked against every corner of the space; without it the
            settings alone are checked.
        config: values of the settings that the search space does not set.
        workspace: contains the cache of prepared cases.
        address: running Ray cluster, for the number of trials at once; by default that on this machine is described.
        show: receives progress.

    Raises:
        InputError: the data or settings cannot be used.
        ResourceError: there is no cluster at the address.
    """
    from gtvray.tuning import SweepJob
    from gtvray.tuning.describe import describe_sweep as describe

    spec = space if isinstance(space, SweepConfig) else load_sweep(Path(space))
    settings, folders = as_config(config), as_workspace(workspace)
    if data is None:
        with _connected(address, show) as cluster:
            return describe(spec, settings, cluster=cluster)
    with folders.lock():
        job = SweepJob(spec, settings, folders, _run_name("dry"), show)
        project = job.open(Path(data))
        with _connected(address, show) as cluster:
            return job.describe(project, cluster)


@contextmanager
def _connected(address: str | None, show: ProgressReporter) -> Iterator[Cluster | None]:
    """Connect to a running cluster; yields None without an address."""
    if address is None:
        yield None
        return
    show.begin("ray", "connecting to Ray")
    with connect(address) as cluster:
        yield cluster


def _run_name(base: str) -> str:
    """Return the name of a run: a new one, or the same again whenever it is started with the same GTVRAY_RUN_ID."""
    return f"{base}-{given_run_id() or new_run_id()}"


def _short_name(file: Path) -> str:
    """Return the name of a file without ending, shortened, neither hidden nor readable as an option."""
    name = file.stem.encode()[:_NAME_BYTES].decode(errors="ignore").lstrip(".-").strip()
    return name or "sweep"
