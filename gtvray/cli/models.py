"""`gtvray promote | rollback | models`: what is registered, and which one is served."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit, table

if TYPE_CHECKING:
    from gtvray.config import Config
    from gtvray.io import Workspace
    from gtvray.models import Bundle
    from gtvray.registry import Registry


def open_registry(place: Workspace, config: Config | None = None, *, writing: bool = True) -> Registry:
    """The registry of a workspace; one that is only read may lie where nothing can be written."""
    from gtvray.config import Config
    from gtvray.registry import Registry
    from gtvray.tracking import connect_mlflow

    tracking = (config or Config()).tracking
    client = connect_mlflow(tracking.uri or place.mlflow_uri, place.artifacts, writing=writing)
    return Registry(client, tracking.model_name, place.bundles)


def resolve_model(model: str, place: Workspace, config: Config | None = None) -> Bundle:
    """A bundle by its folder, its registered version, or as champion."""
    from gtvray.models import Bundle
    from gtvray.registry import CHAMPION

    if Path(model).is_dir():
        return Bundle.load(Path(model))
    registry = open_registry(place, config, writing=False)
    return registry.fetch(registry.champion() if model == CHAMPION else registry.get(model))


def find_golden(bundle: Bundle, place: Workspace, config: Config) -> Path:
    """A model's golden cases, fetched from the registry where this workspace does not have them.

    Raises:
        NotFoundError: it has none.
    """
    from gtvray.errors import NotFoundError

    folder = place.golden_of(bundle.digest)
    if folder.exists():
        return folder
    registry = open_registry(place, config, writing=False)
    version = next((known for known in registry.versions() if known.digest == bundle.digest), None)
    if version is None:
        raise NotFoundError(
            "no golden cases of this bundle here", where=folder, do="name a promoted version, or champion, instead"
        )
    registry.fetch_golden(version, folder)
    return folder


def promote(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, as `gtvray sweep` printed it.")],
    data: Annotated[Path, typer.Option(help="The data it was trained on; its held-out cases decide.")],
    locator: Annotated[
        Path | None, typer.Option(help="A bundle of the same data on a coarser grid: it tells where to look closely.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a bundle through the gate; make it the champion if it passes.

    With inference.KEY=VALUE its networks are scored and promoted under that setting, as a bundle of its own; with
    --locator too, which is for inference.mode=localised.

    Example: gtvray promote gtvray-runs/bundles/NAME --data Naso_GTV
    """
    from gtvray.config import flatten, load_config, with_dotted
    from gtvray.data import open_project
    from gtvray.datasets import Ledger, index_dataset
    from gtvray.errors import InputError
    from gtvray.io import Workspace
    from gtvray.models import Bundle
    from gtvray.promotion import DecisionLog, gather_evidence, require_champion, with_inference
    from gtvray.promotion import promote as through_gate

    place, base, candidate = Workspace(workspace), load_config(config, override or []), Bundle.load(bundle)
    progress = Progress({"prepare": 10, "evaluate": 30}, as_json)
    with progress.live(), place.lock():
        asked = [item.partition("=")[0] for item in override or [] if item.startswith("inference.")]
        changes = {key.removeprefix("inference."): flatten(base)[key] for key in asked}
        locating = Bundle.load(locator) if locator is not None else None
        candidate = with_inference(candidate, changes, place.bundles, locating)
        registry, log = open_registry(place, base), DecisionLog(place.decisions)
        run_id = candidate.info["mlflow_run"]
        # What would be refused after the look at the held-out cases is refused before it.
        require_champion(registry, log)
        registry.require_run(run_id)
        progress.begin("prepare", "finding the split the bundle was trained with")
        # The split is the training's own: with another, held-out cases could be ones it has seen.
        trained_with = with_dotted(base, candidate.info["config"], bundle)
        project = open_project(
            index_dataset(data), trained_with, cache=place.cache, splits=place.splits, report=progress.advance
        )
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
        progress.begin("evaluate", f"{len(project.held_out)} held-out cases")
        masks = place.reports / f"promote-{candidate.digest[:12]}" / "masks"
        threads = max(1, int(base.serving.cpus_per_replica))
        ledger = Ledger(place.ledger)
        golden = place.golden_of(candidate.digest)
        evidence, _ = gather_evidence(
            candidate, project, masks=masks, ledger=ledger, threads=threads, golden=golden, report=progress.advance
        )
        version, judgement = through_gate(
            candidate, run_id, evidence, config=base.promotion, registry=registry, log=log, golden=golden
        )
    found = {"version": version.version, "digest": candidate.digest, **asdict(judgement)}
    gain = judgement.difference
    told = f", DSC {gain.mean:+.3f} over the baseline (from {gain.low:+.3f})" if gain else ""
    emit(found, as_json, f"version {version.version} is champion{told}")


def rollback(
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Undo a change of the champion that was made in MLflow: as last decided here."),
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the champion before this one the champion again.

    With --restore the champion is the one that the last decision made, again: the alias is set back, and a version that
    was deleted in MLflow is registered once more.

    Example: gtvray rollback
    """
    from gtvray.config import load_config
    from gtvray.io import Workspace
    from gtvray.promotion import DecisionLog
    from gtvray.promotion import restore as as_decided
    from gtvray.promotion import rollback as go_back

    place, log = Workspace(workspace), DecisionLog(Workspace(workspace).decisions)
    with place.lock():
        registry = open_registry(place, load_config(config, override or []))
        version = as_decided(registry, log, place.bundles, place.golden) if restore else go_back(registry, log)
    emit(asdict(version), as_json, f"version {version.version} is champion again")


def models(
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered versions.

    Example: gtvray models
    """
    from gtvray.config import load_config
    from gtvray.io import Workspace

    versions = open_registry(Workspace(workspace), load_config(config, override or []), writing=False).versions()
    rows = [{**asdict(version), "aliases": ", ".join(version.aliases)} for version in versions]
    columns = {"version": "version", "aliases": "aliases", "digest": "digest", "run_id": "MLflow run"}
    text = table(rows, columns) if rows else "nothing is registered yet"
    emit([asdict(version) for version in versions], as_json, text)
