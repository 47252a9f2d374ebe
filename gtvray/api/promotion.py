"""Promotion of a bundle to champion, and its reversal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.registry import find_bundle, open_decisions, open_registry
from gtvray.config import Config, with_dotted
from gtvray.errors import GateRefusedError, InputError
from gtvray.io import Workspace, require_path
from gtvray.runtime import SILENT, ProgressReporter

if TYPE_CHECKING:
    from gtvray.data import Project
    from gtvray.models import Bundle
    from gtvray.promotion import Gain, Judgement, Request
    from gtvray.registry import DecisionLog, ModelVersion, Registry


@dataclass(frozen=True)
class PromotionPlan:
    """What the gate will test, stated before anything is scored.

    Attributes:
        champion: version that the candidate is compared with; None before the first promotion.
        cases: number of held-out cases.
        min_cases: number that is required.
        looks: number of models scored on any of these cases, the candidate included.
        level: two-sided confidence level of the comparison with the champion, or with the baseline if there is none.
        detectable: DSC gain in this comparison that is shown with a power of 80 %, for the assumed spread.
    """

    champion: str | None
    cases: int
    min_cases: int
    looks: int
    level: float
    detectable: float


@dataclass(frozen=True)
class Promotion:
    """A promoted model.

    Attributes:
        version: the registered version that is now `champion`.
        digest: of its bundle.
        judgement: what the gate found.
        record: folder with the record of the decision.
    """

    version: ModelVersion
    digest: str
    judgement: Judgement
    record: Path


def promote(
    bundle: PathLike,
    data: PathLike,
    *,
    locator: PathLike | None = None,
    inference: Mapping[str, Any] | None = None,
    gain: Gain | None = None,
    override: str = "",
    by: str | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    show: ProgressReporter = SILENT,
    on_plan: Callable[[PromotionPlan], None] = lambda _: None,
) -> Promotion:
    """Score a bundle on the held-out cases of its data, and make it the champion if the gate accepts it.

    Args:
        bundle: folder of the bundle, a registered version, or the sweep, training or MLflow run that made it.
        data: dataset that it was trained on.
        locator: bundle of a coarser model that locates the tumour, for `inference.mode=localised`.
        inference: inference settings to change, such as {"backend": "openvino"}; the result is a bundle of its own.
        gain: `latency`, `memory` or `retired-data`: what the candidate gains, if it need not be better than the
            champion, only not worse by `promotion.noninferiority_margin`.
        override: reason for promoting a candidate that the gate refuses; recorded and shown with the model.
        by: name of the person; by default GTVRAY_WHO or the account's name.
        workspace: folder with ledger and records, and with the registry unless `tracking.uri` names another.
        config: settings; `promotion.*`, the CPUs and GPUs of a replica in `serving.*`, and `tracking.*` matter.
        show: receives progress.
        on_plan: called with what the gate will test, before anything is scored.

    Raises:
        GateRefusedError: the gate refuses the bundle, and the evidence is recorded; or there are too few held-out
            cases, and nothing is scored.
        InputError: the data are not those of the bundle, the champion was trained on held-out cases, or the champion
            was changed outside the gate.
        BundleError: the bundle is damaged.
    """
    from gtvray.promotion import Request
    from gtvray.promotion import promote as decide

    folders, settings = as_workspace(workspace), as_config(config)
    with folders.lock(folders.decisions):
        candidacy = _Candidacy(
            bundle, Path(data), folders, settings, locator=locator, inference=inference or {}, by=by, show=show
        )
        request = Request(candidacy.log.by, gain, override)
        plan = candidacy.plan()
        on_plan(plan)
        if plan.cases < plan.min_cases and not override:
            raise GateRefusedError(
                "too few held-out cases for a decision",
                where=data,
                expected=f"at least {plan.min_cases} (promotion.min_cases)",
                found=plan.cases,
                do="train on more cases, or with a larger split.held_out_share; nothing was scored",
            )
        return candidacy.decide(request, decide, show)


def plan_promotion(
    bundle: PathLike,
    data: PathLike,
    *,
    locator: PathLike | None = None,
    inference: Mapping[str, Any] | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    show: ProgressReporter = SILENT,
) -> PromotionPlan:
    """Check everything that `promote` checks before scoring, and return what the gate would test.

    No held-out case is scored, and no look is recorded. Arguments and errors are those of `promote`.
    """
    folders, settings = as_workspace(workspace), as_config(config)
    with folders.lock(folders.decisions):
        return _Candidacy(
            bundle, Path(data), folders, settings, locator=locator, inference=inference or {}, by=None, show=show
        ).plan()


def rollback(
    *,
    restore: bool = False,
    by: str | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
) -> ModelVersion:
    """Make the previous champion the champion again.

    Args:
        restore: instead, undo a change of the champion that was made in MLflow.
        by: name of the person; by default GTVRAY_WHO or the account's name.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; only `tracking.*` matters.

    Raises:
        NotReadyError: there is no previous champion.
        BundleError: its bundle is damaged.
    """
    from gtvray.promotion import restore as as_decided
    from gtvray.promotion import rollback as to_previous

    folders = as_workspace(workspace)
    registry, log = open_registry(folders, config), open_decisions(folders, config, by=by)
    if restore:
        return as_decided(registry, log, folders.decisions, bundles=folders.bundles, golden=folders.golden)
    return to_previous(registry, log, folders.decisions)


def adopt_champion(
    version: str,
    reason: str,
    *,
    by: str | None = None,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
) -> ModelVersion:
    """Accept a champion that was set in MLflow without the gate.

    Args:
        version: the version that `champion` points to, as a confirmation.
        reason: why it may be served; recorded.
        by: name of the person; by default GTVRAY_WHO or the account's name.
        workspace: folder with the registry, unless `tracking.uri` names another.
        config: settings; only `tracking.*` matters.

    Raises:
        InputError: `champion` points to another version, or no reason is given.
        BundleError: the bundle is damaged.
    """
    from gtvray.promotion import adopt

    if not reason.strip():
        raise InputError("adopting a model without evidence needs a reason", do="state why it may be served")
    folders = as_workspace(workspace)
    registry, log = open_registry(folders, config), open_decisions(folders, config, by=by)
    return adopt(registry, log, folders.decisions, version=version, reason=reason)


class _Candidacy:
    """A candidate with everything that can be checked before held-out cases are scored.

    Args:
        model: folder, version, or run of the bundle.
        data: dataset that it was trained on.
        folders: the workspace.
        settings: settings of gate, replica and tracking.
        locator, inference: changes of the bundle.
        by: name of the person.
        show: receives progress.
    """

    def __init__(
        self,
        model: PathLike,
        data: Path,
        folders: Workspace,
        settings: Config,
        *,
        locator: PathLike | None,
        inference: Mapping[str, Any],
        by: str | None,
        show: ProgressReporter,
    ) -> None:
        from gtvray.data import open_project
        from gtvray.datasets import Ledger, index_dataset
        from gtvray.models import Bundle
        from gtvray.promotion import Looks, require_champion, require_untouched, with_inference

        require_path(model)
        self._folders, self._settings = folders, settings
        self.registry: Registry = open_registry(folders, settings)
        self.log: DecisionLog = open_decisions(folders, settings, by=by, show=show)
        located = Bundle.load(Path(locator)) if locator is not None else None
        # A path keeps its meaning if its text is a plain number, which names a version.
        named = model.resolve() if isinstance(model, Path) and model.is_dir() else model
        original = find_bundle(str(named), folders, self.registry)
        self.bundle: Bundle = with_inference(original, dict(inference), folders.bundles, located)
        # What would be refused after scoring held-out cases is refused before it.
        self._version = require_champion(self.registry, self.log)
        # The run that trained a version of another site is not in this MLflow; its import made one.
        registered = self.registry.find(original.digest)
        self._run_id = registered.run_id if registered is not None else str(self.bundle.info["mlflow_run"])
        self.registry.require_run(self._run_id)
        self._champion = None if self._version is None else self.registry.fetch(self._version)
        if self._version is not None and self._version.digest == self.bundle.digest:
            raise InputError(
                "this bundle is the champion already",
                where=self.bundle.folder,
                found=f"version {self._version.version}",
                do="nothing needs to be done",
            )
        show.begin("prepare", "finding the split the bundle was trained with")
        # With another split, held-out cases could be ones that it was trained on.
        trained_with = with_dotted(settings, self.bundle.info["config"], str(model))
        dataset = index_dataset(data)
        self._project: Project = open_project(
            dataset, trained_with, cache=folders.cache, splits=folders.splits, report=show.advance
        )
        rate = settings.promotion.false_promotion_rate
        self._looks = Looks(Ledger(folders.ledger), self.log, self._project, rate)
        _require_training_data(self.bundle, self._project, data)
        require_untouched(self.bundle, self._champion, self._project)

    def plan(self) -> PromotionPlan:
        """State what the gate will test."""
        from gtvray.promotion import expected_detectable, level_at

        config, cases = self._settings.promotion, len(self._project.held_out)
        looks = self._looks.count(self.bundle.digest).number
        return PromotionPlan(
            champion=None if self._version is None else self._version.version,
            cases=cases,
            min_cases=config.min_cases,
            looks=looks,
            level=level_at(looks, config.false_promotion_rate),
            detectable=expected_detectable(max(2, cases), looks, config, champion=self._version is not None),
        )

    def decide(
        self,
        request: Request,
        promote: Callable[..., tuple[ModelVersion, Judgement, Path]],
        show: ProgressReporter,
    ) -> Promotion:
        """Score the held-out cases and let the gate decide."""
        from gtvray.promotion import gather_evidence

        folders, digest = self._folders, self.bundle.digest
        models = 1 if self._champion is None else 2
        show.begin("evaluate", f"{len(self._project.held_out)} held-out cases, {models} models")
        golden = folders.golden_of(digest)
        gathered = gather_evidence(
            self.bundle,
            self._project,
            masks=folders.reports / f"promote-{digest[:12]}" / "masks",
            looks=self._looks,
            threads=_replica_threads(self._settings),
            champion=self._champion,
            golden=golden,
            gpus=self._settings.serving.gpus_per_replica,
            report=show.advance,
        )
        version, judgement, record = promote(
            self.bundle,
            self._run_id,
            gathered.evidence,
            config=self._settings.promotion,
            registry=self.registry,
            log=self.log,
            records=folders.decisions,
            request=request,
            golden=golden,
        )
        return Promotion(version, digest, judgement, record)


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
