"""The HTTP endpoint of a model, which follows the champion."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.registry import find_golden, load_bundle, open_decisions, open_registry
from gtvray.api.shadow import ShadowVersion
from gtvray.errors import ConfigError, NotFoundError, ResourceError, first_line
from gtvray.io import Workspace

if TYPE_CHECKING:
    from gtvray.registry import DecisionLog, Registry
    from gtvray.serving import Candidate, Follow, Server
    from gtvray.serving.versions.pointer import Versions


class Endpoint:
    """An endpoint whose model has been found and verified, before Ray is needed.

    Args:
        model: `champion`, which is followed: after a promotion or rollback the new champion is served without a
            restart; or a folder or version, which is served until the endpoint stops.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; `serving.*` and `tracking.*` matter.

    Attributes:
        version: version of the model in the registry, or `unregistered`.
        golden: folder of its golden cases; None if it has none.
        follows: whether later champions are served.
        away: why the registry could not be reached; empty if it could. The version that was served last is served until
            it can.

    Raises:
        NotReadyError: nothing has been promoted yet.
        NotFoundError: there is no such version, or a registered one has no golden cases; or no such shadow version.
        InputError: the champion was changed outside the gate.
        BundleError: the bundle is damaged.
        ConfigError: a model is named twice in `serving.further_models`, or the shadow version is the served one.
        ResourceError: MLflow does not answer, and nothing is known to have been served before.
    """

    def __init__(
        self, model: str = "champion", *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
    ) -> None:
        from gtvray.registry import CHAMPION

        self._workspace, self._config = as_workspace(workspace), as_config(config)
        self._require_names()
        self.follows, self.away = model == CHAMPION, ""
        self.golden: Path | None = None
        try:
            self._find(model)
        except ResourceError as error:
            self._take_last(error)
        self._shadow: ShadowVersion | None = None
        if self._config.serving.shadow_version is not None:
            self._shadow = ShadowVersion(self._workspace, self._config, self._bundle.digest, self.follows)

    def _find(self, model: str) -> None:
        from gtvray.promotion import require_champion

        self._bundle = load_bundle(model, self._workspace, self._config)
        if self.follows:
            require_champion(*self._registry())
        registered = open_registry(self._workspace, self._config, writing=False).find(self._bundle.digest)
        self.version = registered.version if registered is not None else "unregistered"
        self._override = registered.override if registered is not None else ""
        try:
            self.golden = find_golden(self._bundle, self._workspace, self._config)
        except NotFoundError:
            # A registered model must reproduce its golden cases here; a bundle that was never promoted has none.
            if registered is not None:
                raise

    def _take_last(self, error: ResourceError) -> None:
        """Take the version that was served last, or raise the error for which the champion is unknown."""
        from gtvray.models import Bundle
        from gtvray.serving.versions import last_file, read_last

        last = read_last(last_file(self._pointer())) if self.follows else None
        if last is None:
            raise error
        self._bundle, self.golden, self.away = Bundle.load(last.bundle), last.golden, error.what
        self.version, self._override = last.version, last.override

    def start(self, token: str, token_file: PathLike | None = None) -> Server:
        """Deploy it on the Ray cluster that this process is connected to; returns before it is ready.

        Args:
            token: bearer token that clients must send.
            token_file: file that contains the token on every node of a cluster.

        Raises:
            ResourceError: the port is in use, or this Ray cluster already runs Serve.
            ConfigError: a node of the cluster lacks the token, the bundle or the golden cases.
        """
        from gtvray.serving import start_server

        settings, folder = self._config.serving, self._workspace.serving / "jobs"
        file = Path(token_file).resolve() if token_file is not None else None
        tokens, audit = self._workspace.tokens, self._workspace.serving
        shared: dict[str, Any] = {
            "token_file": file,
            "jobs_dir": folder,
            "tokens": tokens,
            "audit": audit,
            "logs": audit,
            "model_name": self._config.tracking.model_name,
            "further": {name: self._follow(name) for name in settings.further_models},
        }
        if self._shadow is not None:
            # No name of a further model has a dot.
            versions = self._workspace.serving / f"{settings.port}.shadow.json"
            shared["shadow"] = self._shadow.plan(
                versions, self._rejecter(lambda: open_registry(self._workspace, self._config))
            )
        if self.follows:
            return start_server(None, settings, token, follow=self._follow(), **shared)
        return start_server(
            self._bundle.folder.resolve(),
            settings,
            token,
            self.version,
            override=self._override,
            digest=self._bundle.digest,
            golden=self.golden,
            **shared,
        )

    def served(self) -> Versions:
        """Return the served version of a running endpoint, which may be another one, and those that were rejected."""
        from gtvray.serving.versions.pointer import Pointer, ServedVersion, Versions

        if self.follows:
            return Pointer(self._pointer()).read()
        return Versions(ServedVersion("", self.version, self._bundle.digest))

    def _pointer(self, name: str | None = None) -> Path:
        """The file that names the served version of a registered model; None means the default model."""
        suffix = f"-{name}" if name is not None else ""
        return self._workspace.serving / f"{self._config.serving.port}{suffix}.json"

    def _require_names(self) -> None:
        further, default = self._config.serving.further_models, self._config.tracking.model_name
        if len({default, *further}) <= len(further):
            raise ConfigError(
                "a model is named twice",
                where="serving.further_models",
                expected=f"names of other models than {default}, each once",
                found=", ".join(further),
                do="remove the duplicate",
            )

    def _registry(self, name: str | None = None) -> tuple[Registry, DecisionLog]:
        config = self._config
        if name is not None:
            tracking = config.tracking.model_copy(update={"model_name": name})
            config = config.model_copy(update={"tracking": tracking})
        return open_registry(self._workspace, config), open_decisions(self._workspace, config)

    def _follow(self, name: str | None = None) -> Follow:
        """How the champion of a registered model is followed; None means the default model."""
        from mlflow.exceptions import MlflowException

        from gtvray.promotion import require_champion
        from gtvray.serving import Candidate, Follow

        folders = self._workspace
        # Opened when it is needed, as it may be away when the endpoint starts.
        opened = cache(lambda: self._registry(name))

        def find() -> Candidate | None:
            try:
                registry, log = opened()
                champion = require_champion(registry, log)
                if champion is None:
                    return None
                bundle, golden = registry.fetch(champion), folders.golden_of(champion.digest)
                registry.fetch_golden(champion, golden)
            except MlflowException as error:
                where = self._config.tracking.uri
                raise ResourceError(
                    "cannot reach MLflow",
                    where=where,
                    found=first_line(error),
                    do="check tracking.uri and the MLflow server; the served version stays until it responds",
                ) from error
            files = bundle.folder.resolve(), golden.resolve()
            return Candidate(champion.version, bundle.digest, *files, champion.override)

        return Follow(find, self._pointer(name), self._rejecter(lambda: opened()[0]))

    @staticmethod
    def _rejecter(opened: Callable[[], Registry]) -> Callable[[Candidate, str], None]:
        def reject(candidate: Candidate, reason: str) -> None:
            registry = opened()
            version = registry.find(candidate.digest)
            if version is not None:
                registry.describe(version, {"gtvray.rejected": reason})

        return reject
