"""The full pipeline: scans, sweep, MLflow, promotion, Ray Serve, masks over HTTP.

It demonstrates that the parts work together.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtvray import NOTICE
from gtvray.config import Config, SweepConfig
from gtvray.data import Project
from gtvray.datasets import Case, Ledger, read_binary, read_label, write_phantoms
from gtvray.errors import FailureError, GateRefusedError
from gtvray.evaluation import ScoredCase, summarise
from gtvray.io import Workspace, atomic_path, read_volume, write_json
from gtvray.reports import render_overlay, scores_table
from gtvray.runtime import ProgressReporter, connect, require_port
from gtvray.tuning import SweepJob, SweepOutcome

if TYPE_CHECKING:
    from gtvray.models import Bundle
    from gtvray.promotion import Evidence, Gathered
    from gtvray.registry import DecisionLog, ModelVersion, Registry
    from gtvray.serving import Client

# Expected seconds of each stage on two cores, for the estimate of the time left.
STAGES = {
    "data": 5,
    "prepare": 5,
    "mlflow": 4,
    "ray": 6,
    "sweep": 165,
    "evaluate": 20,
    "promote": 3,
    "serve": 15,
    "request": 10,
}
_PHANTOMS = 32
_PHANTOM_SEED = 0
_NEED_BYTES = 2_000_000_000
_CLIENTS = 4
_OVERLAY_FIELD_MM = 160.0

# Called with URL and token of the endpoint; blocks until the endpoint should stop.
Hold = Callable[[str, str], None]


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    Attributes:
        workspace: workspace for all output.
        sweep: the sweep to run.
        data: a folder in StructSeg's layout; None to generate phantoms.
        address: address of a running Ray cluster; None to start one on this machine.
        config: settings that neither the base nor the space of the sweep sets.
        hold: keeps the endpoint running at the end.
    """

    workspace: Workspace
    sweep: SweepConfig
    data: Path | None = None
    address: str | None = None
    config: Config = field(default_factory=Config)
    hold: Hold | None = None


@dataclass
class DemoResult:
    """Results of the demo as JSON-serialisable values."""

    data: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    promotion: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    overlay: str | None = None
    tracking: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notice: str = NOTICE


class Demo:
    """One run of the demo; `run` executes it, `result` contains the results so far.

    Args:
        options: what the user chose.
        show: receives progress.
    """

    def __init__(self, options: DemoOptions, show: ProgressReporter) -> None:
        self._options, self._show = options, show
        self._workspace, self._config = options.workspace, options.config
        self._name = time.strftime("demo-%Y%m%d-%H%M%S") + f"-{secrets.token_hex(2)}"
        self._reports = self._workspace.reports / self._name
        self.result = DemoResult()

    def run(self) -> DemoResult:
        """Run every stage.

        Raises:
            InputError: the data or the settings are wrong.
            GateRefusedError: the model is no better than the baseline, and there is no earlier champion.
            FailureError: a stage failed.
        """
        serving = self._config.serving
        # Check first what would otherwise fail at the end.
        require_port(serving.host, serving.port, "--port")
        job = SweepJob(self._options.sweep, self._config, self._workspace, self._name, self._show)
        written = [job.folder, self._workspace.decisions, *([] if self._options.data else [self._workspace.phantoms])]
        with self._workspace.lock(*written, need_bytes=_NEED_BYTES):
            project = self._data(job)
            self._show.begin("mlflow", job.record.uri)
            registry, log, champion = self._champion()
            self._show.begin("ray", "connecting to Ray")
            with connect(self._options.address) as cluster:
                with self._timed("sweep"):
                    outcome = job.run(project, cluster)
                self._record_sweep(job, outcome)
                earlier = registry.fetch(champion) if champion is not None else None
                gathered = self._evaluate(outcome, project, log, earlier)
                version = self._promote(registry, log, outcome, gathered.evidence)
                served = gathered.candidate if version.digest == outcome.bundle.digest else gathered.champion
                self._serve(registry, version, served)
        write_json(self._reports / "result.json", asdict(self.result))
        return self.result

    def _data(self, job: SweepJob) -> Project:
        made = self._options.data is None
        folder = self._options.data or self._workspace.phantoms
        with self._timed("data"):
            project = job.open(folder, self._make_phantoms if made else None)
            case = project.dataset.subset(project.split.train[:1])[0]
            self._picture("prepared", case, case.case_id)
        self.result.data = {
            "root": str(project.dataset.root),
            "phantoms": made,
            "split": {name: len(ids) for name, ids in project.split.parts.items()},
            "fingerprint": project.fingerprint.as_dict(),
            "warnings": [asdict(warning) for warning in job.warnings],
        }
        return project

    def _make_phantoms(self, folder: Path) -> None:
        write_phantoms(folder, _PHANTOMS, _PHANTOM_SEED, self._show.advance, overwrite=True)

    def _record_sweep(self, job: SweepJob, outcome: SweepOutcome) -> None:
        trials = [{**asdict(trial), "best_checkpoint": str(trial.best_checkpoint)} for trial in outcome.result.trials]
        self.result.sweep = {
            "trials": trials,
            "failed": outcome.result.failed,
            "bundle": str(outcome.bundle.folder),
            "digest": outcome.bundle.digest,
        }
        self.result.tracking = {"uri": job.record.uri, "sweep_run": outcome.sweep_run_id, "best_run": outcome.run_id}

    def _evaluate(self, outcome: SweepOutcome, project: Project, log: DecisionLog, champion: Bundle | None) -> Gathered:
        from gtvray.promotion import Looks, gather_evidence

        rate = self._config.promotion.false_promotion_rate
        with self._stage("evaluate", f"{len(project.held_out)} held-out cases, on their original grids"):
            gathered = gather_evidence(
                outcome.bundle,
                project,
                masks=self._reports / "masks",
                looks=Looks(Ledger(self._workspace.ledger), log, project, rate),
                threads=self._threads(),
                champion=champion,
                golden=self._workspace.golden_of(outcome.bundle.digest),
                gpus=self._config.serving.gpus_per_replica,
                report=self._show.advance,
            )
            evidence, scored = gathered.evidence, gathered.candidate
            by_dsc = sorted(scored, key=lambda entry: entry.score.dsc)
            worst, median = by_dsc[0], by_dsc[len(by_dsc) // 2]
            for name, entry in (("worst", worst), ("median", median)):
                title = f"{entry.case.case_id}: DSC {entry.score.dsc:.3f}"
                self._picture(f"held-out-{name}", entry.case, title, entry.mask)
            self._overlay(median)
            with atomic_path(self._reports / "scores.md") as temporary:
                temporary.write_text(scores_table(evidence.candidate))
        self.result.summary = {"model": summarise(evidence.candidate), "baseline": summarise(evidence.baseline)}
        return gathered

    def _champion(self) -> tuple[Registry, DecisionLog, ModelVersion | None]:
        """Open the registry and return the champion; refuse a registry that promotion would refuse at the end."""
        from gtvray.api import open_decisions, open_registry
        from gtvray.promotion import require_champion

        registry = open_registry(self._workspace, self._config)
        log = open_decisions(self._workspace, self._config, show=self._show)
        return registry, log, require_champion(registry, log)

    def _promote(self, registry: Registry, log: DecisionLog, outcome: SweepOutcome, evidence: Evidence) -> ModelVersion:
        """Let the gate decide; an earlier champion stays if the new model is not better."""
        from gtvray.promotion import judge, promote

        bundle, config = outcome.bundle, self._config.promotion
        with self._stage("promote", "through the gate"):
            try:
                version, judgement, record = promote(
                    bundle,
                    outcome.run_id,
                    evidence,
                    config=config,
                    registry=registry,
                    log=log,
                    records=self._workspace.decisions,
                    golden=self._workspace.golden_of(bundle.digest),
                )
            except GateRefusedError as refusal:
                if not evidence.champion_digest:
                    raise
                version, judgement, record = registry.champion(), judge(evidence, config), None
                self._show.begin("promote", f"refused, the champion stays: {refusal.fields['found']}")
        self.result.promotion = {
            "alias": "champion",
            "version": version.version,
            "record": record and str(record),
            **asdict(judgement),
        }
        return version

    def _serve(self, registry: Registry, version: ModelVersion, scored: Sequence[ScoredCase]) -> None:
        from gtvray.serving import Client, start_server

        token = secrets.token_urlsafe(24)
        with ExitStack() as stack:
            with self._stage("serve", "starting the endpoint"):
                champion = registry.fetch(version)
                server = start_server(
                    champion.folder,
                    self._config.serving,
                    token,
                    version=version.version,
                    digest=champion.digest,
                    golden=self._workspace.golden_of(champion.digest),
                )
                stack.callback(server.stop)
                server.wait_ready()
            with (
                self._stage("request", f"{len(scored)} scans over HTTP"),
                Client(server.url, token) as client,
                ThreadPoolExecutor(_CLIENTS) as threads,
            ):
                answers = threads.map(lambda entry: self._request(client, entry), scored)
                for done, row in enumerate(answers, 1):
                    self.result.cases.append(row)
                    self._show.advance(done, len(scored))
            if self._options.hold is not None:
                self._options.hold(server.url, token)

    def _request(self, client: Client, entry: ScoredCase) -> dict[str, Any]:
        began = time.perf_counter()
        served = client.segment(entry.case.image)
        milliseconds = round(1000 * (time.perf_counter() - began))
        offline = read_binary(entry.mask)
        if not (served.mask.same_grid(offline) and np.array_equal(served.mask.array, offline.array)):
            raise FailureError(
                "the served mask differs from the offline mask",
                where=f"case {entry.case.case_id}, request {served.request_id}",
                do="do not use this model here; run `gtvray doctor`",
            )
        row = {"case": entry.case.case_id, "dsc": entry.score.dsc, "hd95_mm": entry.score.hd95_mm}
        if entry.baseline is not None:
            row |= {"baseline_dsc": entry.baseline.dsc, "baseline_hd95_mm": entry.baseline.hd95_mm}
        return {**row, "milliseconds": milliseconds, "request_id": served.request_id, "same_as_offline": True}

    def _threads(self) -> int:
        # As many as a replica has, since another number of threads changes the order of summation.
        return max(1, int(self._config.serving.cpus_per_replica))

    def _picture(self, name: str, case: Case, title: str, prediction: Path | None = None) -> None:
        scan = read_volume(case.image)
        path = self._reports / f"{name}.png"
        mask = read_binary(prediction) if prediction is not None else None
        render_overlay(path, scan, read_label(case, scan), mask, title)
        self.result.pictures.append(str(path))

    def _overlay(self, entry: ScoredCase) -> None:
        """Draw the held-out case of median DSC in a field of view around its tumour."""
        kind = "phantom" if self._options.data is None else "case"
        title = f"Held-out {kind} {entry.case.case_id}: DSC {entry.score.dsc:.3f} (median case)"
        scan, path = read_volume(entry.case.image), self._workspace.reports / "overlay.png"
        reference = read_label(entry.case, scan)
        render_overlay(path, scan, reference, read_volume(entry.mask), title, field_mm=_OVERLAY_FIELD_MM)
        self.result.overlay = str(path)

    @contextmanager
    def _stage(self, name: str, detail: str) -> Iterator[None]:
        self._show.begin(name, detail)
        with self._timed(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.result.seconds[name] = round(time.perf_counter() - began, 2)
