"""Description of a sweep before it runs: search space, first trials and resources per trial."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gtvray.config import Choice, Config, Range, SchedulerConfig, SweepConfig, with_dotted
from gtvray.errors import ResourceError
from gtvray.io import Table
from gtvray.runtime import Cluster, plan_trials, this_machine
from gtvray.tracking import Trial
from gtvray.tracking.trials import COMPLETED
from gtvray.tuning.memory import largest_host_bytes
from gtvray.tuning.searchers.base import METRIC, Proposal
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.searchers.repeated import by_point, members_per_point, same_point
from gtvray.tuning.space import Point, Space, format_setting, unseen

_SHOWN = 8
# A larger grid is not counted; no sweep has more trials.
_COUNTED = 100_000


@dataclass(frozen=True)
class SweepDescription:
    """A sweep before it runs.

    Attributes:
        facts: what it will do, as (name, value).
        space: the search space: key, values, default, condition.
        first: points of the first trials that do not depend on results, with their origin.
    """

    facts: list[tuple[str, str]]
    space: list[dict[str, str]]
    first: list[dict[str, Any]] = field(default_factory=list)

    def text(self) -> str:
        """Format as text for a terminal."""
        keys = list(dict.fromkeys(key for point in self.first for key in point))
        rows = [[format_setting(point.get(key, "-")) for key in keys] for point in self.first]
        parts = ["\n".join(f"{name}: {value}" for name, value in self.facts)]
        parts.append(Table(list(self.space[0]), [list(row.values()) for row in self.space]).text())
        if rows:
            parts.append(f"first trials:\n{Table(keys, rows).text()}")
        return "\n\n".join(parts)


def describe_sweep(
    sweep: SweepConfig, config: Config, default: Point | None = None, cluster: Cluster | None = None
) -> SweepDescription:
    """Describe a sweep from its settings alone.

    Args:
        sweep: space, searcher, scheduler, budget.
        config: settings that the sweep does not set.
        default: point of the first trial, if it is not that of the settings.
        cluster: the connected cluster, for the number of trials at once; None for this machine.

    Raises:
        ConfigError: no network can be built from the settings.
    """
    base = with_dotted(config, sweep.base, "base")
    space = Space(sweep.space, base)
    first = default or space.default()
    epochs, scheduler = base.training.epochs, sweep.scheduler
    rungs = scheduler.rungs(epochs)
    stops = [
        f"{sweep.time_budget_s:g} s" if sweep.time_budget_s else "",
        f"a DSC of {sweep.target:g}" if sweep.target is not None else "",
        f"{sweep.plateau} trials without a better one" if sweep.plateau is not None else "",
    ]
    facts = [
        ("trials", f"{sweep.trials} of at most {epochs} epochs, the first with the default settings"),
        ("searcher", _searcher(sweep)),
        *([("grid", _grid(sweep, space, first))] if sweep.searcher == "grid" else []),
        ("objectives", ", ".join(f"{name} ({goal})" for name, goal in sweep.objectives.items())),
        *([("warm start", "completed trials of " + ", ".join(sweep.warm_start))] if sweep.warm_start else []),
        ("scheduler", scheduler.kind + _stopping_epochs(scheduler, rungs)),
        *(
            [("folds", f"{sweep.folds}; a point significantly worse than the best gets no further fold")]
            if sweep.folds > 1
            else []
        ),
        (
            "seeds of the trainings",
            ", ".join(str(base.training.seed + each) for each in range(max(sweep.repeats, sweep.folds))),
        ),
        ("stops early after", "; ".join(filter(None, stops)) or "never"),
        ("per trial", _resources(base)),
        ("plan", _plan(sweep, with_dotted(base, first, "space"), cluster)),
    ]
    return SweepDescription(facts, _space_rows(space, first), _first_points(sweep, space, first))


def _stopping_epochs(scheduler: SchedulerConfig, rungs: Sequence[int]) -> str:
    if scheduler.kind == "median":
        return f", from epoch {scheduler.grace_epochs} on"
    return f", rungs at epochs {', '.join(map(str, rungs))}" if rungs else ""


def _resources(config: Config) -> str:
    training = config.training
    gpus = f", {training.num_workers * training.gpus_per_worker:g} GPUs" if training.use_gpu else ""
    return f"{training.num_workers} workers, {training.num_workers * training.cpus_per_worker} CPUs{gpus}"


def _searcher(sweep: SweepConfig) -> str:
    from gtvray.tuning.searchers.optuna import start_trials

    text = f"{sweep.searcher}, seed {sweep.seed}"
    # The trials of an earlier sweep replace the quasi-random start.
    if sweep.searcher in ("optuna", "gp") and not sweep.warm_start and start_trials(sweep.trials) >= sweep.trials:
        text += "; with fewer than ten trials all points are quasi-random"
    return text


def _grid(sweep: SweepConfig, space: Space, default: Point) -> str:
    """Return the size of the grid, and whether the trials cover it."""
    grid = list(itertools.islice(space.grid(), _COUNTED + 1))
    size = len(grid)
    if size > _COUNTED:
        return f"more than {_COUNTED} points, of which {sweep.trials} trials try only the first ones"
    first = unseen([default, *(space.complete(point) for point in sweep.start)], [])
    needed = (size + sum(point not in grid for point in first)) * sweep.repeats * sweep.folds
    at_most = "up to " if sweep.folds > 1 else ""
    if needed > sweep.trials:
        return f"{size} points, not all of which are tried: that takes {at_most}{needed} trials"
    return f"{size} points, all tried after {at_most}{needed} trials"


def _plan(sweep: SweepConfig, base: Config, cluster: Cluster | None) -> str:
    """Return how many trials run at once, and the resources of each."""
    import torch

    if cluster is None:
        # Ray is not started, so its count of the GPUs is not known.
        cluster = Cluster("", True, (this_machine(torch.cuda.device_count()),))
    where = "this machine" if cluster.is_local else "the cluster"
    memory_bytes = largest_host_bytes(base, sweep.space)
    try:
        plan = plan_trials(
            base.training, cluster.nodes, sweep.max_concurrent, memory_bytes=memory_bytes, growth=cluster.growth
        )
    except ResourceError as error:
        fields = error.fields
        return f"a trial does not fit on {where}: expected {fields['expected']}; found {fields['found']}"
    return f"{plan.as_text(sweep.trials)}, on {where}"


def _space_rows(space: Space, default: Point) -> list[dict[str, str]]:
    return [
        {
            "key": key,
            "values": _values(entry),
            "default": format_setting(default[key]) if key in default else "-",
            "only if": ", ".join(f"{name} is {format_setting(value)}" for name, value in entry.when.items()) or "-",
        }
        for key, entry in space.entries.items()
    ]


def _values(entry: Range | Choice) -> str:
    if isinstance(entry, Choice):
        return " | ".join(format_setting(value) for value in entry.choice)
    kind = [name for name, on in (("log", entry.log), ("integer", entry.integer)) if on]
    kind += [f"step {entry.step:g}"] if entry.step is not None else []
    return f"{entry.low:g} to {entry.high:g}" + (f" ({', '.join(kind)})" if kind else "")


def _first_points(sweep: SweepConfig, space: Space, default: Point) -> list[dict[str, Any]]:
    """Return points that are proposed before any result is known.

    With folds these are those of trials that run one after the other: all folds of the default settings, which have
    nothing to be worse than, and the first fold of the next point.
    """
    searcher, trials = build_searcher(sweep, space, default), list[Trial]()
    shown = _SHOWN if sweep.folds == 1 else sweep.folds + 1
    while len(trials) < min(shown, sweep.trials):
        proposal = searcher.propose(trials)
        if proposal is None or proposal.origin == "informed" or _undecided(sweep, proposal.point, trials):
            break
        trials.append(_trained(len(trials), proposal, folds=sweep.folds))
    return [{"trial": trial.trial_id, "origin": trial.origin, **trial.settings} for trial in trials]


def _trained(number: int, proposal: Proposal, folds: int) -> Trial:
    """Return a trial of a proposal; with folds a completed one, since a point gets its next fold after that."""
    trial = Trial(f"t{number}", proposal.point, origin=proposal.origin)
    if folds > 1:
        trial.state, trial.epochs, trial.cases = COMPLETED, {1: {METRIC: 0.0}}, {1: ()}
    return trial


def _undecided(sweep: SweepConfig, point: Point, trials: Sequence[Trial]) -> bool:
    """Return whether a point is a new one that a model may propose once earlier trials have ended."""
    from gtvray.tuning.searchers.optuna import start_trials

    points = len(by_point(trials)) if members_per_point(sweep) > 1 else len(trials)
    further = members_per_point(sweep) > 1 and any(same_point(point, trial.settings) for trial in trials)
    return not further and sweep.searcher in ("optuna", "gp") and points >= start_trials(sweep.trials)
