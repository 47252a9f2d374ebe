"""`gtvray promote | rollback | models`, and the look-up of models for other commands."""

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


def open_registry(workspace: Workspace, config: Config | None = None, *, writing: bool = True) -> Registry:
    """Open the registry of a workspace.

    Args:
        workspace: the workspace.
        config: settings with the tracking URI and the model name.
        writing: require write access; False for a registry that is only read.
    """
    from gtvray.config import Config
    from gtvray.registry import Registry
    from gtvray.tracking import connect_mlflow

    tracking = (config or Config()).tracking
    client = connect_mlflow(tracking.uri or workspace.mlflow_uri, workspace.artifacts, writing=writing)
    return Registry(client, tracking.model_name, workspace.bundles)


def resolve_model(model: str, workspace: Workspace, config: Config | None = None) -> Bundle:
    """Return a bundle by its folder, its registered version, or `champion`."""
    from gtvray.models import Bundle
    from gtvray.registry import CHAMPION

    if Path(model).is_dir():
        return Bundle.load(Path(model))
    registry = open_registry(workspace, config, writing=False)
    return registry.fetch(registry.champion() if model == CHAMPION else registry.get(model))


def find_golden(bundle: Bundle, workspace: Workspace, config: Config) -> Path:
    """Return the folder of a model's golden cases, downloaded from the registry if the workspace does not have them.

    Raises:
        NotFoundError: the model has no golden cases.
    """
    from gtvray.errors import NotFoundError

    folder = workspace.golden_of(bundle.digest)
    if folder.exists():
        return folder
    registry = open_registry(workspace, config, writing=False)
    version = next((known for known in registry.versions() if known.digest == bundle.digest), None)
    if version is None:
        raise NotFoundError(
            "this bundle has no golden cases", where=folder, do="name a promoted version or champion instead"
        )
    registry.fetch_golden(version, folder)
    return folder


def promote(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, as printed by `gtvray sweep`.")],
    data: Annotated[Path, typer.Option(help="Dataset the bundle was trained on; the gate scores its held-out cases.")],
    locator: Annotated[
        Path | None, typer.Option(help="Bundle of the same data on a coarser grid, which localises the tumour.")
    ] = None,
    workspace_path: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle the champion if it passes the promotion gate.

    With inference.KEY=VALUE or --locator (for inference.mode=localised) a new bundle with the same networks and these
    inference settings is scored and promoted.

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

    workspace, base, candidate = Workspace(workspace_path), load_config(config, override or []), Bundle.load(bundle)
    progress = Progress({"prepare": 10, "evaluate": 30}, as_json)
    with progress.live(), workspace.lock():
        overridden = [item.partition("=")[0] for item in override or [] if item.startswith("inference.")]
        changes = {key.removeprefix("inference."): flatten(base)[key] for key in overridden}
        locator_bundle = Bundle.load(locator) if locator is not None else None
        candidate = with_inference(candidate, changes, workspace.bundles, locator_bundle)
        registry, log = open_registry(workspace, base), DecisionLog(workspace.decisions)
        run_id = candidate.info["mlflow_run"]
        # Checked before held-out cases are scored, since the ledger counts every scoring.
        require_champion(registry, log)
        registry.require_run(run_id)
        progress.begin("prepare", "the split that the bundle was trained with")
        # The split of the training: in another split, held-out cases may be cases it was trained on.
        trained_with = with_dotted(base, candidate.info["config"], bundle)
        project = open_project(
            index_dataset(data), trained_with, cache=workspace.cache, splits=workspace.splits, report=progress.advance
        )
        for model in (candidate, *([candidate.locator] if candidate.locator else [])):
            trained_on = model.info["training_data"]["digest"]
            if trained_on != project.fingerprint.digest:
                raise InputError(
                    f"the {'bundle' if model is candidate else 'locator'} was trained on other data",
                    where=data,
                    expected=trained_on,
                    found=project.fingerprint.digest,
                    do="name the dataset it was trained on, so that no held-out case was used for training",
                )
        progress.begin("evaluate", f"{len(project.held_out)} held-out cases")
        masks = workspace.reports / f"promote-{candidate.digest[:12]}" / "masks"
        threads = max(1, int(base.serving.cpus_per_replica))
        ledger = Ledger(workspace.ledger)
        golden = workspace.golden_of(candidate.digest)
        evidence, _ = gather_evidence(
            candidate, project, masks=masks, ledger=ledger, threads=threads, golden=golden, report=progress.advance
        )
        version, judgement = through_gate(
            candidate, run_id, evidence, config=base.promotion, registry=registry, log=log, golden=golden
        )
    found = {"version": version.version, "digest": candidate.digest, **asdict(judgement)}
    gain = judgement.difference
    detail = f", DSC minus the baseline's {gain.mean:+.3f} (lower bound {gain.low:+.3f})" if gain else ""
    emit(found, as_json, f"version {version.version} is champion{detail}")


def rollback(
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Restore the last decided champion after a change made in MLflow."),
    ] = False,
    workspace_path: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again.

    With --restore the champion of the last decision is restored instead: the alias is set to it, and if its version was
    deleted in MLflow, the bundle is registered again.

    Example: gtvray rollback
    """
    from gtvray.config import load_config
    from gtvray.io import Workspace
    from gtvray.promotion import DecisionLog
    from gtvray.promotion import restore as restore_champion
    from gtvray.promotion import rollback as roll_back

    workspace = Workspace(workspace_path)
    log = DecisionLog(workspace.decisions)
    with workspace.lock():
        registry = open_registry(workspace, load_config(config, override or []))
        version = (
            restore_champion(registry, log, workspace.bundles, workspace.golden)
            if restore
            else roll_back(registry, log)
        )
    emit(asdict(version), as_json, f"version {version.version} is champion again")


def models(
    workspace_path: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered versions.

    Example: gtvray models
    """
    from gtvray.config import load_config
    from gtvray.io import Workspace

    versions = open_registry(Workspace(workspace_path), load_config(config, override or []), writing=False).versions()
    rows = [{**asdict(version), "aliases": ", ".join(version.aliases)} for version in versions]
    columns = {"version": "version", "aliases": "aliases", "digest": "digest", "run_id": "MLflow run"}
    text = table(rows, columns) if rows else "no model is registered"
    emit([asdict(version) for version in versions], as_json, text)
