"""Versions of one registered model, each a bundle with its digest as a tag."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.errors import BundleError, NotFoundError, NotReadyError
from gtvray.io import atomic_dir
from gtvray.models import Bundle, verify_digest

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
_DIGEST_TAG = "gtvray.digest"
# MLflow's words for a model, or an alias, that is not there.
_NO_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class ModelVersion:
    """A registered bundle; `digest` is empty when it was registered by other means."""

    version: str
    digest: str
    run_id: str
    aliases: tuple[str, ...]


class Registry:
    """The registered model of one name.

    Args:
        client: of the MLflow store.
        name: of the registered model.
        bundles: folder that fetched bundles are kept in, by digest.
    """

    def __init__(self, client: MlflowClient, name: str, bundles: Path) -> None:
        self._client, self._name, self._bundles = client, name, bundles

    def register(self, bundle: Bundle, run_id: str) -> ModelVersion:
        """Make a bundle a version; a bundle that is one already keeps it."""
        for known in self.versions():
            if known.digest == bundle.digest:
                return known
        experiment = self._client.get_run(run_id).info.experiment_id
        model = self._client.create_logged_model(experiment, name=self._name, source_run_id=run_id)
        self._client.log_model_artifacts(model.model_id, str(bundle.folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._ensure_model()
        made = self._client.create_model_version(
            self._name,
            source=f"models:/{model.model_id}",
            run_id=run_id,
            model_id=model.model_id,
            tags={_DIGEST_TAG: bundle.digest},
        )
        return ModelVersion(str(made.version), bundle.digest, run_id, ())

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found = self._client.search_model_versions(f"name = '{self._name}'")
        versions = [self._version(str(entry.version)) for entry in found]
        return sorted(versions, key=lambda version: int(version.version))

    def champion(self) -> ModelVersion:
        """The promoted version.

        Raises:
            NotReadyError: nothing has been promoted.
        """
        from mlflow.exceptions import MlflowException

        try:
            entry = self._client.get_model_version_by_alias(self._name, CHAMPION)
        except MlflowException as error:
            if error.error_code not in _NO_ALIAS:
                raise
            raise NotReadyError(
                "nothing has been promoted yet", where=self._name, do="promote a model: `gtvray promote`"
            ) from error
        return self._version(str(entry.version))

    def point_champion(self, version: str) -> None:
        """Move the alias."""
        self._client.set_registered_model_alias(self._name, CHAMPION, version)

    def get(self, version: str) -> ModelVersion:
        """A version by its number.

        Raises:
            NotFoundError: no such version.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._version(version)
        except MlflowException as error:
            known = ", ".join(entry.version for entry in self.versions()) or "none"
            raise NotFoundError("no such model version", found=version, expected=known) from error

    def fetch(self, version: ModelVersion) -> Bundle:
        """The bundle of a version, downloaded once and held against the digest it was registered with.

        Raises:
            BundleError: it is not what was registered.
        """
        folder = self._bundles / version.digest[:16]
        if not folder.exists():
            self._download(version, folder)
        bundle = Bundle.load(folder)
        if bundle.digest != version.digest:
            raise BundleError(
                "bundle is not the one registered", where=folder, expected=version.digest, found=bundle.digest
            )
        return bundle

    def add_golden(self, version: ModelVersion, folder: Path) -> None:
        """Keep a version's golden cases beside it."""
        self._client.log_artifacts(version.run_id, str(folder), _golden_path(version))

    def fetch_golden(self, version: ModelVersion, folder: Path) -> None:
        """Download a version's golden cases, unless the folder is there already.

        Raises:
            NotFoundError: it has none.
        """
        import mlflow

        if folder.exists():
            return
        # Asked first: a store that fails must not be taken for one without golden cases.
        if not self._client.list_artifacts(version.run_id, _golden_path(version)):
            raise NotFoundError(
                "no golden cases came with this model",
                where=f"version {version.version}",
                do="promote it again; golden cases are made of held-out cases",
            )
        with tempfile.TemporaryDirectory() as scratch:
            source = mlflow.artifacts.download_artifacts(
                run_id=version.run_id,
                artifact_path=_golden_path(version),
                dst_path=scratch,
                tracking_uri=self._client.tracking_uri,
            )
            with atomic_dir(folder) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def _download(self, version: ModelVersion, folder: Path) -> None:
        import mlflow

        with tempfile.TemporaryDirectory() as scratch:
            source = mlflow.artifacts.download_artifacts(
                f"models:/{self._name}/{version.version}", dst_path=scratch, tracking_uri=self._client.tracking_uri
            )
            verify_digest(Path(source))
            with atomic_dir(folder) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def _version(self, version: str) -> ModelVersion:
        entry = self._client.get_model_version(self._name, version)
        return ModelVersion(version, entry.tags.get(_DIGEST_TAG, ""), entry.run_id, tuple(entry.aliases))

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(self._name)
        except MlflowException:
            self._client.create_registered_model(self._name)


def _golden_path(version: ModelVersion) -> str:
    return f"golden/{version.digest[:16]}"
