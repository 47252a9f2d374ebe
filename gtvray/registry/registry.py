"""Versions of one registered model, each a bundle with its digest as a tag."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from gtvray.errors import BundleError, NotFoundError, NotReadyError, ResourceError
from gtvray.io import atomic_dir, sha256_of
from gtvray.models import Bundle, verify_digest
from gtvray.tracking import filter_text, require_run_kept

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
_DIGEST_TAG = "gtvray.digest"
# That golden cases were added to a version, with the sha256 of golden.json: without it, files that cannot be reached
# would look like golden cases that never were.
_GOLDEN_TAG, _GOLDEN_FILE = "gtvray.golden", "golden.json"
# MLflow's words for a model, a version, an alias or a run that is not there.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class ModelVersion:
    """A registered bundle.

    Attributes:
        version: its number.
        digest: of the bundle; empty when it was registered by other means.
        run_id: MLflow run it came from.
        aliases: that point to it.
        golden: sha256 of its golden cases' `golden.json`; empty if none were added, or by an earlier gtvray.
    """

    version: str
    digest: str
    run_id: str
    aliases: tuple[str, ...]
    golden: str = ""


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

    def require_run(self, run_id: str) -> None:
        """Check that a bundle of a training run can be registered in this MLflow.

        Raises:
            NotFoundError: the run is not in this MLflow.
            InputError: it, or its experiment, was deleted.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            raise NotFoundError(
                "the run that trained this bundle is not in this MLflow",
                where=self._client.tracking_uri,
                found=f"no run {run_id}",
                do="name the workspace, or the tracking.uri, that it was trained with",
            ) from error
        require_run_kept(self._client, run)

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        name = filter_text(self._name)
        found = self._all_versions(None if name is None else f"name = {name}")
        versions = [self._version(str(entry.version)) for entry in found if entry.name == self._name]
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
            if error.error_code not in _ABSENT:
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
            if error.error_code not in _ABSENT:
                raise
            known = ", ".join(entry.version for entry in self.versions()) or "none"
            raise NotFoundError("no such model version", found=version, expected=known) from error

    def fetch(self, version: ModelVersion) -> Bundle:
        """The bundle of a version, downloaded once and held against the digest it was registered with.

        Raises:
            BundleError: it is not what was registered.
            ResourceError: MLflow's files of it cannot be reached.
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
        self._tag_golden(version, folder)

    def fetch_golden(self, version: ModelVersion, folder: Path) -> None:
        """Download a version's golden cases, unless the folder is there already.

        Raises:
            NotFoundError: it has none.
            ResourceError: it has some, and MLflow's files cannot be reached.
            BundleError: they are not those that were added.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        if folder.exists():
            return
        # Asked first: a store that fails must not be taken for one without golden cases.
        if not self._client.list_artifacts(version.run_id, _golden_path(version)):
            self._require_no_golden(version)
            raise NotFoundError(
                "no golden cases came with this model",
                where=f"version {version.version}",
                do="promote it again; golden cases are made of held-out cases",
            )
        with tempfile.TemporaryDirectory() as scratch:
            try:
                source = mlflow.artifacts.download_artifacts(
                    run_id=version.run_id,
                    artifact_path=_golden_path(version),
                    dst_path=scratch,
                    tracking_uri=self._client.tracking_uri,
                )
            except (MlflowException, OSError) as error:
                raise self._unreachable(version, error) from error
            self._require_same_golden(version, Path(source))
            with atomic_dir(folder) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def restore_golden(self, version: ModelVersion, folder: Path) -> None:
        """Add golden cases to a version that was registered again: from a folder, or from the run, which kept them."""
        if folder.exists():
            self.add_golden(version, folder)
        elif self._client.list_artifacts(version.run_id, _golden_path(version)):
            self.fetch_golden(version, folder)
            self._tag_golden(version, folder)

    def _tag_golden(self, version: ModelVersion, folder: Path) -> None:
        digest = sha256_of(folder / _GOLDEN_FILE)
        self._client.set_model_version_tag(self._name, version.version, _GOLDEN_TAG, digest)

    def _require_no_golden(self, version: ModelVersion) -> None:
        """Tell a version without golden cases from one whose files are gone.

        Raises:
            ResourceError: it has some, or the folder of all artifacts is not where MLflow has it.
        """
        experiment = self._client.get_run(version.run_id).info.experiment_id
        location = self._client.get_experiment(experiment).artifact_location
        place = Path(unquote(urlparse(location).path)) if location.startswith("file:") else None
        if self._version(version.version).golden or (place is not None and not place.is_dir()):
            raise self._unreachable(version, "nothing is stored there")

    def _require_same_golden(self, version: ModelVersion, folder: Path) -> None:
        expected, file = self._version(version.version).golden, folder / _GOLDEN_FILE
        found = sha256_of(file) if file.is_file() else f"no {_GOLDEN_FILE}"
        if expected and found != expected:
            raise BundleError(
                "the golden cases are not those of the promotion",
                where=f"version {version.version}",
                expected=expected,
                found=found,
                do="promote the model again; until then it is not proved here",
            )

    def _unreachable(self, version: ModelVersion, found: object) -> ResourceError:
        return ResourceError(
            "the golden cases of this model cannot be reached",
            where=self._client.get_run(version.run_id).info.artifact_uri,
            found=found,
            do="make MLflow's artifact store reachable, or put its files back; without them nothing proves it here",
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
        from mlflow.exceptions import MlflowException

        # Not by `models:/NAME/VERSION`, which cannot hold every name.
        place = self._client.get_model_version_download_uri(self._name, version.version)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                source = mlflow.artifacts.download_artifacts(
                    place, dst_path=scratch, tracking_uri=self._client.tracking_uri
                )
                reached, reason = any(Path(source).iterdir()), "nothing is stored there"
            except (MlflowException, OSError) as error:
                reached, reason = False, str(error)
            if not reached:
                raise ResourceError(
                    "the files of this registered model cannot be reached",
                    where=place,
                    found=reason,
                    do="make MLflow's artifact store reachable, or put its files back",
                )
            verify_digest(Path(source))
            with atomic_dir(folder) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)

    def _version(self, version: str) -> ModelVersion:
        entry = self._client.get_model_version(self._name, version)
        digest, golden = entry.tags.get(_DIGEST_TAG, ""), entry.tags.get(_GOLDEN_TAG, "")
        return ModelVersion(version, digest, entry.run_id, tuple(entry.aliases), golden)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(self._name)
        except MlflowException:
            self._client.create_registered_model(self._name)


def _golden_path(version: ModelVersion) -> str:
    return f"golden/{version.digest[:16]}"
