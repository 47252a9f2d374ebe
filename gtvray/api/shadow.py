"""The shadow version of an endpoint: a registered candidate, and its disagreement with the champion in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.api.registry import open_registry
from gtvray.config import Config
from gtvray.errors import ConfigError, NotReadyError
from gtvray.io import Workspace, read_json_lines

if TYPE_CHECKING:
    from gtvray.registry import ModelVersion, Registry
    from gtvray.serving import Candidate, ShadowPlan
    from gtvray.tracking import Rejection

SHADOW_TAG = "gtvray.shadow"


class ShadowVersion:
    """The version `serving.shadow_version`, fetched and verified before Ray is needed.

    Args:
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings.
        served: digest of the bundle that the endpoint initially serves.
        follows: whether the endpoint follows the champion.

    Raises:
        ConfigError: it is the served version.
        NotFoundError: there is no such version, or it has no golden cases.
        BundleError: its bundle is damaged.
        ResourceError: its files cannot be reached.
    """

    def __init__(self, workspace: Workspace, config: Config, served: str, follows: bool) -> None:
        from gtvray.serving import Candidate

        self._workspace, self._config, self._follows = workspace, config, follows
        registry = open_registry(workspace, config, writing=False)
        version = registry.get(str(config.serving.shadow_version))
        if version.digest == served:
            raise ConfigError(
                "the shadow version is the one that is served",
                where="serving.shadow_version",
                expected="another version of the registered model",
                found=version.version,
            )
        bundle, golden = registry.fetch(version), workspace.golden_of(version.digest)
        registry.fetch_golden(version, golden)
        files = bundle.folder.resolve(), golden.resolve()
        self._candidate = Candidate(version.version, bundle.digest, *files, version.override)

    def plan(self, versions: Path, reject: Callable[[Candidate, str], None]) -> ShadowPlan:
        """Return the plan by which the endpoint runs the shadow version.

        Args:
            versions: file for its state.
            reject: called with the version and the reason if it could not be started.
        """
        from gtvray.serving import ShadowPlan

        registry = open_registry(self._workspace, self._config)

        def find() -> Candidate | None:
            return None if self._follows and _is_champion(registry, self._candidate) else self._candidate

        return ShadowPlan(find, versions, reject, self._delivery(registry, versions))

    def _delivery(self, registry: Registry, versions: Path) -> Callable[[list[dict[str, Any]]], list[Rejection]]:
        """Return a function that sends records to the candidates' runs, and their summary to the versions' tags."""
        from gtvray.serving import record_files, shadow_metrics, summarise_shadow
        from gtvray.tracking import connect_mlflow, log_metrics, send_each

        uri, _ = self._workspace.tracking_store(self._config.tracking.uri)
        client = connect_mlflow(uri, self._workspace.artifacts)

        def deliver(records: list[dict[str, Any]]) -> list[Rejection]:
            candidates: dict[str, ModelVersion] = {}

            def send(record: dict[str, Any]) -> None:
                # The files may have records of another candidate, from before the setting was changed.
                number = record["version"]["shadow"]
                if number not in candidates:
                    candidates[number] = registry.get(number)
                log_metrics(client, candidates[number].run_id, *shadow_metrics(record))

            refused = send_each(records, send)
            known = [record for file in record_files(versions) for record in read_json_lines(file)]
            for version in candidates.values():
                registry.describe(version, {SHADOW_TAG: summarise_shadow(known, version.digest)})
            return refused

        return deliver


def _is_champion(registry: Registry, candidate: Candidate) -> bool:
    try:
        return registry.champion().digest == candidate.digest
    except NotReadyError:
        return False
