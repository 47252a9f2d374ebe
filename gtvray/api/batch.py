"""Prediction of many scans, in this process or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.registry import find_golden, load_bundle
from gtvray.config import Config
from gtvray.errors import NotFoundError
from gtvray.io import Workspace, require_path
from gtvray.models import Bundle
from gtvray.runtime import SILENT, ProgressReporter, connect

if TYPE_CHECKING:
    from gtvray.batch import BatchOutcome


def predict_folder(
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    model: str = "champion",
    address: str | None = None,
    exhaustive: bool = False,
    uncertainty: bool = False,
    overwrite: bool = False,
    report: bool = False,
    threads: int = 1,
    gpus: float | None = None,
    memory_gb: float | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    read: Iterable[Path] = (),
    show: ProgressReporter = SILENT,
) -> BatchOutcome:
    """Predict the masks of many scans; one that fails does not stop the others.

    Every result is recorded in `predictions.jsonl` next to the masks. A repeated call keeps the masks that are recorded
    and unchanged, and predicts the others.

    Args:
        inputs: volume files, and folders of cases or of volume files.
        out: folder for the masks; or a file, for one scan.
        model: folder of a bundle, a registered version, or `champion`.
        address: running Ray cluster, over which the scans are spread; by default that of RAY_ADDRESS, which Ray sets in
            a job, and otherwise none: this process predicts.
        exhaustive: run every patch, regardless of the model's inference mode.
        uncertainty: estimate the uncertainty, and write the entropy of each voxel to a file next to each mask.
        overwrite: replace outputs of gtvray that were made with another model, scan or setting; never other files.
        report: check the paths of report.json and report.html, which the caller writes.
        threads: CPU threads of the network, and CPUs of each process on a cluster.
        gpus: GPUs of each process on a cluster; by default 1 if it has GPUs.
        memory_gb: memory of each process on a cluster; by default estimated from the headers of the largest scans.
        workspace: folder with the registry.
        config: settings; `tracking.*` and `training.resources_wait_s` matter.
        read: further files that must not be replaced.
        show: receives progress.

    Raises:
        InputError: there is no scan, an output was rejected, or the path of an output has a mask of another scan or
            model.
        NotReadyError, NotFoundError, BundleError: as `load_model`.
        ResourceError: another process predicts into the folder, or the cluster does not answer or has no free
            resources.
        NotReproducedError: no node of the cluster reproduces the golden cases of the model.
    """
    from gtvray.batch import (
        BatchJob,
        Making,
        PredictorOpener,
        find_files,
        model_folders,
        predict_here,
    )

    require_path(model)
    folders, settings = as_workspace(workspace), as_config(config)
    given = [Path(each) for each in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    files = find_files(given, Path(out), report=report, read=read, closed=model_folders(folders, model))
    job = BatchJob(files, uncertainty=uncertainty, overwrite=overwrite, show=show)
    # Before a model is loaded, and before a lock file is made beside the masks.
    job.check()
    bundle = load_bundle(model, folders, settings)
    making = Making(bundle.digest, exhaustive, uncertainty)
    opener = PredictorOpener(bundle.folder.resolve(), bundle.digest, exhaustive, uncertainty, threads)
    address = address or os.environ.get("RAY_ADDRESS")
    with job.writing():
        todo, kept = job.left(making)
        if address is None or not todo:
            return job.run(todo, kept, making, partial(predict_here, opener=opener, show=show))
        opener = replace(opener, golden=_golden(bundle, folders, settings))
        read_there = [*given, opener.bundle, *([opener.golden] if opener.golden else [])]
        show.begin("ray", "connecting to Ray")
        with connect(address) as cluster:
            # Imports Ray, which must not happen before.
            from gtvray.batch import ClusterPredictor

            execute = ClusterPredictor(
                cluster,
                opener,
                read_there,
                gpus,
                None if memory_gb is None else int(memory_gb * 1e9),
                bundle.inference.runs_on_gpu,
                settings.training.resources_wait_s,
                show,
            )
            return job.run(todo, kept, making, execute)


def _golden(bundle: Bundle, workspace: Workspace, config: Config) -> Path | None:
    """The golden cases of a promoted model, which every node must reproduce; None for a model without them."""
    try:
        return find_golden(bundle, workspace, config).resolve()
    except NotFoundError:
        return None
