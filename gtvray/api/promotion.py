"""Promotion of a bundle to champion, and its reversal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.models import open_registry
from gtvray.config import Config, with_dotted
from gtvray.errors import InputError
from gtvray.io import Workspace
from gtvray.runtime import SILENT, ProgressReporter

if TYPE_CHECKING:
    from gtvray.data import Project
    from gtvray.models import Bundle
    from gtvray.promotion import Judgement
    from gtvray.registry import ModelVersion


@dataclass(frozen=True)
class Promotion:
    """A promoted model.

    Attributes:
        version: the registered version that is now `champion`.
        digest: of its bundle.
        judgement: what the gate found.
    """

    version: ModelVersion
    digest: str
    judgement: Judgement


def promote(
    bundle: PathLike,
    data: PathLike,
    *,
    locator: PathLike | None = None,
    inference: Mapping[str, Any] | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    show: ProgressReporter = SILENT,
) -> Promotion:
    """Score a bundle on the held-out cases of its data, and make it the champion if the gate accepts it.

    Args:
        bundle: folder of the bundle.
        data: dataset that it was trained on.
        locator: bundle of a coarser model that locates the tumour, for `inference.mode=localised`.
        inference: inference settings to change, such as {"backend": "openvino"}; the result is a bundle of its own.
        workspace: folder with registry, ledger and decisions.
        config: settings; `promotion.*`, `serving.cpus_per_replica` and `tracking.*` matter.
        show: receives progress.

    Raises:
        GateRefusedError: the gate refuses the bundle; the evidence is recorded.
        InputError: the data are not those of the bundle, or the champion was changed from outside.
        BundleError: the bundle is damaged.
    """
    from gtvray.data import open_project
    from gtvray.datasets import Ledger, index_dataset
    from gtvray.models import Bundle
    from gtvray.promotion import DecisionLog, gather_evidence, require_champion, with_inference
    from gtvray.promotion import promote as decide

    folders, settings = as_workspace(workspace), as_config(config)
    candidate = Bundle.load(Path(bundle))
    with folders.lock(folders.decisions):
        located = Bundle.load(Path(locator)) if locator is not None else None
        candidate = with_inference(candidate, dict(inference or {}), folders.bundles, located)
        registry, log = open_registry(folders, settings), DecisionLog(folders.decisions)
        run_id = candidate.info["mlflow_run"]
        # What would be refused after scoring held-out cases is refused before it.
        require_champion(registry, log)
        registry.require_run(run_id)
        show.begin("prepare", "finding the split the bundle was trained with")
        # With another split, held-out cases could be ones that it was trained on.
        trained_with = with_dotted(settings, candidate.info["config"], bundle)
        dataset = index_dataset(Path(data))
        project = open_project(dataset, trained_with, cache=folders.cache, splits=folders.splits, report=show.advance)
        _require_training_data(candidate, project, Path(data))
        show.begin("evaluate", f"{len(project.held_out)} held-out cases")
        golden = folders.golden_of(candidate.digest)
        evidence, _ = gather_evidence(
            candidate,
            project,
            masks=folders.reports / f"promote-{candidate.digest[:12]}" / "masks",
            ledger=Ledger(folders.ledger),
            threads=_replica_threads(settings),
            golden=golden,
            report=show.advance,
        )
        version, judgement = decide(
            candidate, run_id, evidence, config=settings.promotion, registry=registry, log=log, golden=golden
        )
    return Promotion(version, candidate.digest, judgement)


def rollback(
    *, restore: bool = False, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> ModelVersion:
    """Make the previous champion the champion again.

    Args:
        restore: instead, undo a change of the champion that was made in MLflow.
        workspace: folder with registry and decisions.
        config: settings; only `tracking.*` matters.

    Raises:
        NotReadyError: there is no previous champion.
        BundleError: its bundle is damaged.
    """
    from gtvray.promotion import DecisionLog
    from gtvray.promotion import restore as as_decided
    from gtvray.promotion import rollback as to_previous

    folders = as_workspace(workspace)
    log = DecisionLog(folders.decisions)
    with folders.lock(folders.decisions):
        registry = open_registry(folders, config)
        return as_decided(registry, log, folders.bundles, folders.golden) if restore else to_previous(registry, log)


def _require_training_data(candidate: Bundle, project: Project, data: Path) -> None:
    for model in (candidate, *([candidate.locator] if candidate.locator else [])):
        trained_on = model.info["training_data"]["digest"]
        if trained_on != project.fingerprint.digest:
            raise InputError(
                f"the {'bundle' if model is candidate else 'locator'} was trained on other data",
                where=data,
                expected=trained_on,
                found=project.fingerprint.digest,
                do="name the folder it was trained on; a held-out case must not have been trained on",
            )


def _replica_threads(config: Config) -> int:
    # As many as a serving replica has, because the number of threads changes how sums are split.
    return max(1, int(config.serving.cpus_per_replica))
