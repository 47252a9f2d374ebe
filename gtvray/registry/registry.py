"""Versions of one MLflow registered model, each a bundle with its digest as a tag."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from gtvray.errors import BundleError, NotFoundError, NotReadyError, ResourceError
from gtvray.failpoints import failpoint
from gtvray.io import atomic_dir, sha256_of
from gtvray.models import Bundle, verify_digest
from gtvray.tracking import artifact_errors, filter_text, require_artifact_client, require_run_kept

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
OVERRIDE_TAG = "gtvray.override"
LICENCE_TAG = "gtvray.licence"
_DIGEST_TAG = "gtvray.digest"
# The tag records that golden cases were added, with the sha256 of golden.json: without it, missing files could not be
# distinguished from a version without golden cases.
_GOLDEN_TAG, _GOLDEN_FILE = "gtvray.golden", "golden.json"
_MANIFEST = "manifest.json"
_WRITING = "make MLflow's artifact store reachable and writable, and run this again; the champion is unchanged"
_NO_FILES = "the files of this registered model cannot be reached"
_NO_FILES_DO = "make MLflow's artifact store reachable, or restore its files"
_NO_GOLDEN = "the golden cases of this model cannot be reached"
_NO_GOLDEN_DO = f"{_NO_FILES_DO}; they are needed to verify the model here"
# MLflow's error codes for a model, version, alias or run that does not exist.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class ModelVersion:
    """A registered bundle.

    Attributes:
        version: its number.
        digest: digest of the bundle; empty if it was not registered by gtvray.
        run_id: MLflow run that trained it.
        aliases: its aliases.
        golden: sha256 of its golden cases' `golden.json`; empty if none were added, or before this tag existed.
        override: why it was promoted although the gate refused it, or adopted without the gate; otherwise empty.
        licence: licence of its training data, as the dataset states it; empty if it was not recorded.
    """

    version: str
    digest: str
    run_id: str
    aliases: tuple[str, ...]
    golden: str = ""
    override: str = ""
    licence: str = ""


class Registry:
    """A registered model and its versions.

    Args:
        client: client of the MLflow store.
        name: name of the registered model.
        bundles: folder for downloaded bundles, by digest.
    """

    def __init__(self, client: MlflowClient, name: str, bundles: Path) -> None:
        self._client, self._name, self._bundles = client, name, bundles

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self._name

    @property
    def workspace(self) -> Path:
        """The workspace that bundles are downloaded to."""
        return self._bundles.parent

    def register(self, bundle: Bundle, run_id: str, tags: Mapping[str, str] = MappingProxyType({})) -> ModelVersion:
        """Register a bundle as a new version, or return its version if it is registered already.

        Args:
            bundle: the bundle.
            run_id: the run that trained it.
            tags: of the version, such as the licence of its training data.

        Raises:
            ResourceError: its files cannot be written to MLflow's artifact store.
        """
        import mlflow

        known = self.find(bundle.digest)
        if known is not None:
            self.describe(known, tags)
            return known
        # MLflow resolves `models:/` in its global store, which another client may have changed.
        mlflow.set_tracking_uri(self._client.tracking_uri)
        experiment = self._client.get_run(run_id).info.experiment_id
        model = self._client.create_logged_model(experiment, name=self._name, source_run_id=run_id)
        with artifact_errors(
            "the bundle cannot be written to MLflow's artifact store", model.artifact_location, _WRITING
        ):
            self._client.log_model_artifacts(model.model_id, str(bundle.folder))
        failpoint("registry.uploaded")
        self._client.finalize_logged_model(model.model_id, "READY")
        self._ensure_model()
        created = self._client.create_model_version(
            self._name,
            source=f"models:/{model.model_id}",
            run_id=run_id,
            model_id=model.model_id,
            tags={**tags, _DIGEST_TAG: bundle.digest},
        )
        return ModelVersion(str(created.version), bundle.digest, run_id, ())

    def require_run(self, run_id: str) -> None:
        """Check that a bundle of this training run can be registered.

        Raises:
            NotFoundError: the MLflow store does not have the run.
            InputError: the run or its experiment was deleted.
            ResourceError: its artifacts are in an object store whose client is not installed.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            raise NotFoundError(
                "the run that trained this bundle is not in this MLflow store",
                where=self._client.tracking_uri,
                found=f"no run {run_id}",
                do="use the workspace or the tracking.uri that it was trained with; if another site trained it, "
                "register it with `gtvray models import`",
            ) from error
        require_run_kept(self._client, run)
        require_artifact_client(run.info.artifact_uri)

    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        name = filter_text(self._name)
        found = self._all_versions(None if name is None else f"name = {name}")
        versions = [self._version(str(entry.version)) for entry in found if entry.name == self._name]
        return sorted(versions, key=lambda version: int(version.version))

    def find(self, digest: str) -> ModelVersion | None:
        """Return the version of a bundle by its digest; None if it is not registered."""
        return next((version for version in self.versions() if version.digest == digest), None)

    def describe(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self._name, version.version, name, value)

    def champion(self) -> ModelVersion:
        """Return the promoted version.

        Raises:
            NotReadyError: nothing has been promoted.
        """
        from mlflow.exceptions import MlflowException

        try:
            entry = self._client.get_model_version_by_alias(self._name, CHAMPION)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            raise NotReadyError(
                "nothing has been promoted yet",
                where=f"registered model {self._name}",
                do="promote a model with `gtvray promote`, or name the folder of a bundle (--model)",
            ) from error
        return self._version(str(entry.version))

    def point_champion(self, version: str) -> None:
        """Set the champion alias to a version."""
        self._client.set_registered_model_alias(self._name, CHAMPION, version)

    def get(self, version: str) -> ModelVersion:
        """Return a version by its number.

        Raises:
            NotFoundError: the version does not exist.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._version(version)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            known = ", ".join(entry.version for entry in self.versions())
            expected = f"a registered version: {known}" if known else "a registered version; there is none yet"
            raise NotFoundError("no such model version", expected=expected, found=version) from error

    def fetch(self, version: ModelVersion) -> Bundle:
        """Return the bundle of a version, downloaded once and verified against its registered digest.

        Raises:
            BundleError: the bundle is not the one registered.
            ResourceError: its files cannot be read from MLflow's artifact store.
        """
        if not version.digest:
            raise BundleError(
                "this version was not registered by gtvray",
                where=f"version {version.version}",
                expected=f"the tag {_DIGEST_TAG}",
                do="promote the bundle with gtvray",
            )
        folder = self._bundles / version.digest[:16]
        if not folder.exists():
            self._download(version, folder)
        bundle = Bundle.load(folder)
        if bundle.digest != version.digest:
            raise BundleError(
                "the bundle is not the one registered",
                where=folder,
                expected=version.digest,
                found=bundle.digest,
                do="remove this folder; the bundle is then downloaded again",
            )
        return bundle

    def add_golden(self, version: ModelVersion, folder: Path) -> None:
        """Store the golden cases of a version in its run.

        Raises:
            ResourceError: they cannot be written to MLflow's artifact store.
        """
        location = self._client.get_run(version.run_id).info.artifact_uri
        with artifact_errors("the golden cases cannot be written to MLflow's artifact store", location, _WRITING):
            self._client.log_artifacts(version.run_id, str(folder), _golden_path(version))
        self._tag_golden(version, folder)

    def fetch_golden(self, version: ModelVersion, folder: Path) -> None:
        """Download a version's golden cases, unless the folder exists.

        Raises:
            NotFoundError: the version has none.
            ResourceError: the version has some, and their files cannot be read from MLflow's artifact store.
            BundleError: they are not the golden cases that were added.
        """
        import mlflow

        if folder.exists():
            return
        # List first: a failing store must not be mistaken for a version without golden cases.
        if not self._has_golden_files(version):
            self._require_no_golden(version)
            raise NotFoundError(
                "this model has no golden cases",
                where=f"version {version.version}",
                do="promote it again: a promotion creates them from held-out cases",
            )
        with tempfile.TemporaryDirectory() as scratch:
            with self._golden_errors(version):
                source = mlflow.artifacts.download_artifacts(
                    run_id=version.run_id,
                    artifact_path=_golden_path(version),
                    dst_path=scratch,
                    tracking_uri=self._client.tracking_uri,
                )
            self._require_same_golden(version, Path(source))
            with atomic_dir(folder, complete_with=_GOLDEN_FILE) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def restore_golden(self, version: ModelVersion, folder: Path) -> None:
        """Add golden cases to a re-registered version, from a folder if it exists, otherwise from its run."""
        if folder.exists():
            self.add_golden(version, folder)
        elif self._has_golden_files(version):
            self.fetch_golden(version, folder)
            self._tag_golden(version, folder)

    def _has_golden_files(self, version: ModelVersion) -> bool:
        with self._golden_errors(version):
            return bool(self._client.list_artifacts(version.run_id, _golden_path(version)))

    def _golden_errors(self, version: ModelVersion) -> AbstractContextManager[None]:
        location = self._client.get_run(version.run_id).info.artifact_uri
        return artifact_errors(_NO_GOLDEN, location, _NO_GOLDEN_DO)

    def _tag_golden(self, version: ModelVersion, folder: Path) -> None:
        digest = sha256_of(folder / _GOLDEN_FILE)
        self._client.set_model_version_tag(self._name, version.version, _GOLDEN_TAG, digest)

    def _require_no_golden(self, version: ModelVersion) -> None:
        """Check that a version was registered without golden cases, and not that their files are missing.

        Raises:
            ResourceError: the version has golden cases, or the artifact folder does not exist.
        """
        experiment = self._client.get_run(version.run_id).info.experiment_id
        location = self._client.get_experiment(experiment).artifact_location
        folder = Path(unquote(urlparse(location).path)) if location.startswith("file:") else None
        if self._version(version.version).golden or (folder is not None and not folder.is_dir()):
            raise ResourceError(_NO_GOLDEN, where=location, found="no files", do=_NO_GOLDEN_DO)

    def _require_same_golden(self, version: ModelVersion, folder: Path) -> None:
        expected, file = self._version(version.version).golden, folder / _GOLDEN_FILE
        found = sha256_of(file) if file.is_file() else f"no {_GOLDEN_FILE}"
        if expected and found != expected:
            raise BundleError(
                "the golden cases are not those of the promotion",
                where=f"version {version.version}",
                expected=expected,
                found=found,
                do="promote the model again; until then its masks cannot be verified",
            )

    def _all_versions(self, condition: str | None) -> list[MlflowModelVersion]:
        found: list[MlflowModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(condition, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _download(self, version: ModelVersion, folder: Path) -> None:
        import mlflow

        # `models:/NAME/VERSION` cannot express every name.
        location = self._client.get_model_version_download_uri(self._name, version.version)
        with tempfile.TemporaryDirectory() as scratch:
            with artifact_errors(_NO_FILES, location, _NO_FILES_DO):
                source = mlflow.artifacts.download_artifacts(
                    location, dst_path=scratch, tracking_uri=self._client.tracking_uri
                )
                if not any(Path(source).iterdir()):
                    raise ResourceError(_NO_FILES, where=location, found="no files", do=_NO_FILES_DO)
            verify_digest(Path(source))
            # Another process may have fetched it meanwhile, and may be reading it.
            with atomic_dir(folder, complete_with=_MANIFEST) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def _version(self, version: str) -> ModelVersion:
        entry = self._client.get_model_version(self._name, version)
        digest, *rest = (entry.tags.get(tag, "") for tag in (_DIGEST_TAG, _GOLDEN_TAG, OVERRIDE_TAG, LICENCE_TAG))
        return ModelVersion(version, digest, entry.run_id, tuple(entry.aliases), *rest)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(self._name)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            try:
                self._client.create_registered_model(self._name)
            except MlflowException as raced:
                # Another process created it first.
                if raced.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise


def _golden_path(version: ModelVersion) -> str:
    return f"golden/{version.digest[:16]}"
