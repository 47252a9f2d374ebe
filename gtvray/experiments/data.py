"""Open a dataset for an experiment, and record the versions it ran with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from gtvray import __version__
from gtvray.config import Config
from gtvray.data import CaseCache, Project, open_project
from gtvray.datasets import CorrectionStore, Finding, index_dataset, require_sound
from gtvray.datasets.checks.findings import finding
from gtvray.datasets.checks.survey import Survey, survey_cases
from gtvray.errors import DataError
from gtvray.io import Workspace
from gtvray.runtime import ProgressReporter


def open_data(
    data: Path,
    config: Config,
    workspace: Workspace,
    show: ProgressReporter,
    *,
    make: Callable[[Path], None] | None = None,
    before_preparing: Callable[[], None] = lambda: None,
) -> tuple[Project, list[Finding]]:
    """Index, check, split and prepare a dataset.

    Args:
        data: folder of the dataset.
        config: settings of split and preprocessing.
        workspace: contains the cache and the split.
        show: receives progress.
        make: called first to create the content of the folder.
        before_preparing: called once the data have been checked; raises if the work cannot continue.

    Returns:
        the project and the findings of the check.

    Raises:
        InputError: the data cannot be used.
    """
    show.begin("data", "reading and checking the cases")
    if make is not None:
        make(data)
    dataset = index_dataset(data)
    surveys = survey_cases(dataset.cases, show.advance)
    warnings = require_sound(dataset, surveys=surveys)
    before_preparing()
    show.begin("prepare", f"preparing {dataset.title}")
    project = open_project(dataset, config, cache=workspace.cache, splits=workspace.splits, report=show.advance)
    if config.split.corrections:
        project, kept_apart = _with_corrections(project, config, workspace, surveys)
        warnings += kept_apart
    return project, warnings


def _with_corrections(
    project: Project, config: Config, workspace: Workspace, surveys: Sequence[Survey]
) -> tuple[Project, list[Finding]]:
    store = CorrectionStore(workspace.corrections)
    usable = store.usable(project.dataset, project.split, project.patients, surveys)
    if not (usable.replaced or usable.added):
        raise DataError(
            "there is no corrected mask to train on",
            where=workspace.corrections,
            expected="a correction of a training case or of a further scan",
            found="; ".join(f"{name}: {reason}" for name, reason in usable.refused.items()) or "none",
            do="add one with `gtvray corrections add`, or leave out split.corrections",
        )
    cache = CaseCache(workspace.cache, config.preprocessing, config.cache)
    findings = [finding("correction.kept_apart", name, reason) for name, reason in usable.refused.items()]
    return project.with_corrections(usable, store, cache), findings


def versions() -> dict[str, str]:
    """Return the versions of the main packages, as tags of a run."""
    return {
        # Not from package metadata: the code of a submitted job need not be installed.
        "version.gtvray": __version__,
        **{f"version.{name}": metadata.version(name) for name in ("ray", "torch", "monai", "numpy")},
    }
