"""The model registry of a workspace: its versions, decisions, bundles and golden cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.api.arguments import ConfigLike, as_config
from gtvray.errors import NotFoundError
from gtvray.io import Workspace, require_path
from gtvray.models import Bundle
from gtvray.runtime import SILENT, ProgressReporter

if TYPE_CHECKING:
    from gtvray.registry import DecisionLog, Registry


def open_registry(workspace: Workspace, config: ConfigLike = None, *, writing: bool = True) -> Registry:
    """Open the model registry of a workspace.

    Args:
        workspace: folder with the registry, unless `tracking.uri` names another store.
        config: settings; only `tracking.*` matters.
        writing: False opens a store that cannot be written to.

    Raises:
        ResourceError: MLflow does not answer.
    """
    from gtvray.registry import Registry
    from gtvray.tracking import connect_mlflow

    tracking = as_config(config).tracking
    uri, _ = workspace.tracking_store(tracking.uri)
    client = connect_mlflow(uri, workspace.artifacts, writing=writing)
    return Registry(client, tracking.model_name, workspace.bundles)


def open_decisions(
    workspace: Workspace,
    config: ConfigLike = None,
    *,
    by: str | None = None,
    writing: bool = True,
    show: ProgressReporter = SILENT,
) -> DecisionLog:
    """Open the log of decisions about the registered model.

    Args:
        workspace: folder with the registry, unless `tracking.uri` names another store.
        config: settings; only `tracking.*` matters.
        by: name of the person who decides; by default GTVRAY_WHO or the account's name.
        writing: False opens a store that cannot be written to.
        show: receives the name of the process that holds the lease, while waiting for it.

    Raises:
        ResourceError: MLflow does not answer.
    """
    from gtvray.datasets import who
    from gtvray.registry import DecisionLog
    from gtvray.tracking import connect_mlflow

    tracking = as_config(config).tracking
    uri, artifacts = workspace.tracking_store(tracking.uri)
    client = connect_mlflow(uri, workspace.artifacts, writing=writing)

    def waiting(holder: str) -> None:
        show.begin("promote", f"waiting for {holder}")

    return DecisionLog(client, tracking.model_name, artifacts, by or who(), waiting)


def is_folder(model: str) -> bool:
    """Return whether a model is named by its folder: a plain number is a version, since cases have such names."""
    return not model.isdecimal() and Path(model).is_dir()


def find_bundle(model: str, workspace: Workspace, registry: Registry) -> Bundle:
    """Find a bundle by its folder, its registered version, or the sweep, training or MLflow run that made it.

    A plain number is a version, even if a folder has this name; such a folder is named by a path, as in `./3`.

    Raises:
        NotFoundError: there is none.
        InputError: it is a URI.
        BundleError: it is damaged.
    """
    from gtvray.registry import CHAMPION

    require_path(model)
    named = workspace.bundles / model
    if is_folder(model):
        return Bundle.load(Path(model))
    if model == CHAMPION or model.isdecimal():
        return registry.fetch(registry.champion() if model == CHAMPION else registry.get(model))
    if Path(model).name == model and named.is_dir():
        return Bundle.load(named)
    of_sweep = _bundle_of_sweep(model, workspace)
    if of_sweep is not None:
        return Bundle.load(of_sweep)
    of_run = next((version for version in registry.versions() if version.run_id == model), None)
    if of_run is not None:
        return registry.fetch(of_run)
    for folder in workspace.bundles.glob("*/"):
        if (folder / "bundle.json").is_file() and Bundle.load(folder).info.get("mlflow_run") == model:
            return Bundle.load(folder)
    raise NotFoundError(
        "no such bundle",
        where=workspace.bundles,
        found=model,
        expected="folder of a bundle, registered version, or name or MLflow run of a sweep or training",
        do="`gtvray models list` lists the registered versions",
    )


def _bundle_of_sweep(model: str, workspace: Workspace) -> Path | None:
    """Return the folder of the bundle of a sweep, given its name or MLflow run; None if there is no such sweep.

    Raises:
        NotFoundError: the sweep has no bundle yet.
    """
    from gtvray.tuning.resume import read_result

    named = workspace.sweeps / model
    if Path(model).name != model or not named.is_dir():
        results = (read_result(folder) for folder in workspace.sweeps.glob("*/"))
        of_run = next((each for each in results if each is not None and each.sweep_run_id == model), None)
        return None if of_run is None else workspace.bundles / of_run.bundle
    result = read_result(named)
    if result is None:
        raise NotFoundError(
            "the sweep has no bundle, because it has not ended",
            where=named,
            do="resume it with --resume NAME of `gtvray sweep`, then run this again",
        )
    return workspace.bundles / result.bundle


def load_bundle(model: str, workspace: Workspace, config: ConfigLike = None) -> Bundle:
    """Load and verify a bundle by its folder, its registered version, or as `champion`; numbers as in `find_bundle`.

    Raises:
        as `load_model`.
    """
    from gtvray.registry import CHAMPION

    require_path(model)
    if is_folder(model):
        return Bundle.load(Path(model))
    registry = open_registry(workspace, config, writing=False)
    return registry.fetch(registry.champion() if model == CHAMPION else registry.get(model))


def find_golden(bundle: Bundle, workspace: Workspace, config: ConfigLike = None) -> Path:
    """Return the folder of a model's golden cases, fetched from the registry if it is not in the workspace.

    Raises:
        NotFoundError: the model has no golden cases.
        BundleError: the golden cases cannot be reached, or differ from those of the promotion.
    """
    from gtvray.evaluation import golden_digest

    folder = workspace.golden_of(bundle.digest)
    # An exported version has them beside its bundle.
    exported = bundle.folder.parent / "golden"
    if (exported / "golden.json").is_file() and golden_digest(exported) == bundle.digest:
        return exported
    if folder.exists():
        return folder
    registry = open_registry(workspace, config, writing=False)
    version = next((known for known in registry.versions() if known.digest == bundle.digest), None)
    if version is None:
        raise NotFoundError("no golden cases of this bundle", where=folder, do="name a promoted version, or champion")
    registry.fetch_golden(version, folder)
    return folder
