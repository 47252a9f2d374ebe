"""Registered versions: details, comparison of two, export and import."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray import NOTICE
from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.registry import find_bundle, open_decisions, open_registry
from gtvray.config import flatten
from gtvray.errors import BundleError, NotFoundError
from gtvray.io import Workspace, atomic_dir, check_outputs, download_folder, is_uri, upload_folder

if TYPE_CHECKING:
    from gtvray.models import Bundle
    from gtvray.registry import Decision, DecisionLog, ModelVersion, Registry

BUNDLE, GOLDEN, RECORD = "bundle", "golden", "record"
# Uploaded last: an interrupted upload lacks this file, and is rejected as an incomplete bundle.
_LAST = f"{BUNDLE}/manifest.json"


@dataclass(frozen=True)
class VersionDetails:
    """A registered version with its bundle and decisions.

    Attributes:
        version: the version.
        bundle: its bundle.
        decisions: the decisions about it, oldest first.
    """

    version: ModelVersion
    bundle: Bundle
    decisions: tuple[Decision, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        bundle = self.bundle
        return {
            **asdict(self.version),
            "network": bundle.network.model_dump(mode="json"),
            "preprocessing": bundle.preprocessing.model_dump(mode="json"),
            "inference": bundle.inference.model_dump(mode="json"),
            "members": bundle.members,
            "locator": bundle.locator.digest if bundle.locator is not None else None,
            "info": bundle.info,
            "decisions": [asdict(decision) for decision in self.decisions],
        }


def show_version(
    model: str = "champion", *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> VersionDetails:
    """Return a registered version with its bundle and decisions.

    Args:
        model: a version, `champion`, or the run that made it.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; only `tracking.*` matters.

    Raises:
        NotFoundError: it is not registered.
        NotReadyError: nothing has been promoted yet.
        BundleError: its bundle is damaged.
    """
    folders = as_workspace(workspace)
    return _details(model, folders, open_registry(folders, config), open_decisions(folders, config))


def _details(model: str, folders: Workspace, registry: Registry, log: DecisionLog) -> VersionDetails:
    bundle = find_bundle(model, folders, registry)
    version = registry.find(bundle.digest)
    if version is None:
        raise NotFoundError("this bundle is not registered", found=bundle.digest, do="promote it")
    decisions = tuple(decision for decision in log.decisions() if decision.digest == bundle.digest)
    return VersionDetails(version, bundle, decisions)


def diff_versions(
    one: str, other: str, *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> dict[str, tuple[Any, Any]]:
    """Compare two registered versions.

    Args:
        one: as in `show_version`.
        other: the same.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; only `tracking.*` matters.

    Returns:
        dotted key -> both values, for every entry that differs; None where a version has no such entry.
    """
    folders = as_workspace(workspace)
    registry, log = open_registry(folders, config), open_decisions(folders, config)
    left, right = (_flat(_details(model, folders, registry, log)) for model in (one, other))
    keys = dict.fromkeys([*left, *right])
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def export_version(
    model: str, folder: PathLike, *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> PathLike:
    """Write a registered version to a folder that another site can serve: bundle, golden cases and decision records.

    Args:
        model: as in `show_version`.
        folder: a folder that does not exist yet; also by URI, such as `s3://bucket/folder`.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; only `tracking.*` matters.

    Returns:
        the folder, as given.

    Raises:
        InputError: the folder exists.
        ResourceError: the object store of the URI failed.
    """
    if not is_uri(folder):
        target = Path(folder)
        check_outputs([target], folders=[target])
    folders = as_workspace(workspace)
    registry, log = open_registry(folders, config), open_decisions(folders, config)
    details = _details(model, folders, registry, log)
    golden = folders.golden_of(details.version.digest)
    if details.version.golden:
        registry.fetch_golden(details.version, golden)
    with _new_folder(folder) as temporary:
        shutil.copytree(details.bundle.folder, temporary / BUNDLE)
        if golden.exists():
            shutil.copytree(golden, temporary / GOLDEN)
        for decision in details.decisions:
            # A crash may have prevented the upload of the record of any other decision.
            if decision.evidence and decision.state == "completed":
                record = temporary / RECORD / f"{decision.number:04d}-{decision.kind}"
                record.mkdir(parents=True)
                log.download_record(decision, record)
    return folder


def export_monai(
    model: str, folder: PathLike, *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> Path:
    """Write a registered version in MONAI's bundle format.

    Arguments and errors are those of `export_version`, but the folder cannot be a URI.

    Returns:
        the folder.
    """
    from gtvray.inference.monai_bundle import write_monai_bundle

    folders, target = as_workspace(workspace), Path(folder)
    check_outputs([target], folders=[target])
    details = _details(model, folders, open_registry(folders, config), open_decisions(folders, config))
    write_monai_bundle(details.bundle, target, _summary(details))
    return target


@contextmanager
def _new_folder(target: PathLike) -> Iterator[Path]:
    """Yield a temporary folder; at the end of the `with` block it is moved to the path, or uploaded to the URI."""
    if is_uri(target):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            upload_folder(Path(scratch), os.fspath(target), last=_LAST)
        return
    with atomic_dir(Path(target)) as temporary:
        yield temporary


def _summary(details: VersionDetails) -> str:
    """Describe a version in Markdown, for readers of a MONAI bundle."""
    bundle, last = details.bundle, details.decisions[-1] if details.decisions else None
    data: Mapping[str, Any] = bundle.info.get("training_data", {})
    decision = f"{last.kind} by {last.by}, {last.at}: {last.reason}" if last is not None else "never decided on"
    lines = [
        f"# gtvray model {bundle.digest[:12]}",
        NOTICE,
        f"Version {details.version.version} of the registry; last decision: {decision}.",
        f"Trained on {data.get('cases')} cases; licence of the data: {data.get('licence', 'not stated')}.",
        "Masks equal to those of `gtvray predict` (requires gtvray):",
        "```sh\npython -m monai.bundle run --bundle_root . --config_file configs/inference.json "
        "--meta_file configs/metadata.json --dataset_dir SCANS --output_dir MASKS\n```",
        "`models/model.pt` has the weights of the network alone, for other pipelines; their masks were not evaluated.",
    ]
    return "\n\n".join(lines) + "\n"


def import_version(
    folder: PathLike, *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> ModelVersion:
    """Register a version that another site exported; it becomes champion by `promote` like any other.

    Args:
        folder: the exported folder; also by URI, such as `s3://bucket/folder`.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; `tracking.*` matters.

    Raises:
        BundleError: the folder holds no intact bundle, or the golden cases of another model.
        ResourceError: the object store of the URI failed.
    """
    if is_uri(folder):
        with tempfile.TemporaryDirectory() as scratch:
            download_folder(os.fspath(folder), Path(scratch))
            return import_version(scratch, workspace=workspace, config=config)
    from gtvray.evaluation import golden_digest
    from gtvray.models import Bundle
    from gtvray.registry import LICENCE_TAG
    from gtvray.tracking import connect_mlflow, experiment_id, find_or_create_run

    source, folders, tracking = Path(folder), as_workspace(workspace), as_config(config).tracking
    bundle, golden = Bundle.load(source / BUNDLE), source / GOLDEN
    if golden.exists() and golden_digest(golden) != bundle.digest:
        raise BundleError(
            "the golden cases belong to another model",
            where=golden,
            expected=bundle.digest,
            found=golden_digest(golden),
            do="export the version again",
        )
    registry = open_registry(folders, config)
    known = registry.find(bundle.digest)
    if known is not None:
        return known
    uri, artifacts = folders.tracking_store(tracking.uri)
    client = connect_mlflow(uri, folders.artifacts)
    experiment = experiment_id(client, tracking.experiment, artifacts)
    tags = {"mlflow.runName": f"import {bundle.digest[:12]}", "gtvray.digest": bundle.digest}
    run_id = find_or_create_run(client, experiment, f"import/{bundle.digest}", tags)
    client.set_terminated(run_id)
    data: Mapping[str, Any] = bundle.info.get("training_data", {})
    described = {"gtvray.imported": "true", LICENCE_TAG: str(data.get("licence", "not stated"))}
    version = registry.register(bundle, run_id, described)
    if golden.exists():
        registry.add_golden(version, golden)
    return registry.get(version.version)


def _flat(details: VersionDetails) -> dict[str, Any]:
    bundle = details.bundle
    data = bundle.info.get("training_data", {})
    return {
        "digest": bundle.digest,
        "members": bundle.members,
        "patch_ijk": bundle.patch_ijk,
        "locator": bundle.locator.digest if bundle.locator is not None else None,
        "data.digest": data.get("digest"),
        "data.licence": data.get("licence"),
        "mlflow_run": bundle.info.get("mlflow_run"),
        **{f"metrics.{name}": value for name, value in bundle.info.get("metrics", {}).items()},
        **bundle.info.get("config", {}),
        **{f"preprocessing.{name}": value for name, value in flatten(bundle.preprocessing).items()},
        **{f"network.{name}": value for name, value in flatten(bundle.network).items()},
        **{f"inference.{name}": value for name, value in flatten(bundle.inference).items()},
    }
