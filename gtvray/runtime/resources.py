"""Resources of a cluster's nodes, and the number of training runs that fit on them concurrently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gtvray.config import TrainingConfig
from gtvray.errors import ResourceError

# Shares such as 0.1 are not exact in binary.
_ROUNDING = 1e-9
# For a group of nodes without an upper limit.
_UNLIMITED = 10_000


@dataclass(frozen=True)
class Node:
    """Total resources of a node, or of each node of a group that an autoscaler can start.

    Attributes:
        cpus, gpus: number of CPUs and GPUs of each node.
        memory_bytes: Ray's memory resource of each node; None if it is unknown.
        count: number of such nodes.
    """

    cpus: float
    gpus: float
    memory_bytes: float | None = None
    count: int = 1

    def holds(self, needs: Needs) -> int:
        """Number of workers that fit on one such node."""
        fit = _UNLIMITED
        if needs.cpus:
            fit = int(self.cpus / needs.cpus + _ROUNDING)
        if needs.gpus:
            # A fraction of a GPU is taken from a single GPU, so remainders of several GPUs do not add up.
            fit = min(fit, int(self.gpus + _ROUNDING) * int(1 / needs.gpus + _ROUNDING))
        if needs.memory_bytes and self.memory_bytes is not None:
            fit = min(fit, int(self.memory_bytes / needs.memory_bytes))
        return fit

    def as_text(self) -> str:
        """Describe the node in one phrase."""
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 1e9:.1f} GB"
        return f"{self.count} x ({self.cpus:g} CPUs, {self.gpus:g} GPUs{memory})"


@dataclass(frozen=True)
class Needs:
    """Resources of one worker of a training run, all on one node."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: int = 0

    def as_bundle(self) -> dict[str, float]:
        """Return the resources as a bundle of a Ray placement group."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in amounts.items() if amount}

    def as_text(self) -> str:
        """The resources in one phrase."""
        return resources_text(self.as_bundle())


@dataclass(frozen=True)
class ResourcePlan:
    """Number of concurrent training runs, and the resources of each.

    Attributes:
        concurrent: number of concurrent training runs.
        workers: number of workers of a training run.
        needs: resources of one worker.
        fits_now: whether a training run fits on the present nodes; otherwise an autoscaler has to start some.
    """

    concurrent: int
    workers: int
    needs: Needs
    fits_now: bool = True

    def as_text(self, trials: int) -> str:
        """Describe the plan in one phrase.

        Args:
            trials: number of trials in total, each a training run.
        """
        at_once, needs = min(self.concurrent, trials), self.needs
        workers = "" if self.workers == 1 else f"{self.workers} workers with "
        memory = f"{needs.memory_bytes / 1e9:.1f} GB of memory"
        amounts = f"{_counted(needs.cpus, 'CPU')}, {_counted(needs.gpus, 'GPU')}, {memory}"
        return f"{_counted(at_once, 'trial')} at once, each {workers}{amounts}"


def worker_needs(training: TrainingConfig, memory_bytes: int) -> Needs:
    """Return the resources of one worker.

    Args:
        training: training settings.
        memory_bytes: memory that a worker takes on its host; 0 reserves none.
    """
    return Needs(training.cpus_per_worker, training.gpus_per_worker if training.use_gpu else 0.0, memory_bytes)


def plan_trials(
    training: TrainingConfig,
    nodes: Iterable[Node],
    wanted: int | None,
    *,
    memory_bytes: int = 0,
    growth: Iterable[Node] = (),
) -> ResourcePlan:
    """Determine how many training runs fit concurrently; each worker must fit on one node.

    The number is limited here, because Tune does not account for the workers that a trial starts through Ray Train.

    Args:
        training: training settings of a trial.
        nodes: nodes of the cluster.
        wanted: maximum number of concurrent trials; None for as many as fit.
        memory_bytes: memory that a worker takes on its host; 0 reserves none.
        growth: nodes that an autoscaler can start, including those that it has already started.

    Raises:
        ResourceError: a trial fits neither on the present nodes nor on those that an autoscaler can start.
    """
    needs = worker_needs(training, memory_bytes)
    now, later = list(nodes), list(growth)
    present, possible = (count_fitting(needs, group) for group in (now, later))
    fit = max(present, possible) // training.num_workers
    if fit < 1:
        raise ResourceError(
            "a trial does not fit on this cluster",
            expected=f"{training.num_workers} x ({needs.as_text()}), each on one node",
            found=nodes_text(now, later),
            do=_remedy(needs, [*now, *later]),
        )
    return ResourcePlan(min(fit, wanted or fit), training.num_workers, needs, present >= training.num_workers)


def count_fitting(needs: Needs, nodes: Iterable[Node]) -> int:
    """Return how many workers fit on nodes, each on one of them."""
    return sum(node.holds(needs) * node.count for node in nodes)


def nodes_text(now: Sequence[Node], later: Sequence[Node]) -> str:
    """The nodes of a cluster and those that its autoscaler can start, in one phrase."""
    found = " and ".join(node.as_text() for node in now) or "no node"
    if later:
        found += "; the autoscaler can provide " + " and ".join(node.as_text() for node in later)
    return found


def resources_text(amounts: dict[str, float]) -> str:
    """Amounts of Ray resources in one phrase, such as "2 CPUs, 1 GPUs, 3.1 GB"."""
    words = []
    for name, amount in amounts.items():
        if name == "memory":
            words.append(f"{amount / 1e9:.1f} GB")
        elif name in ("CPU", "GPU"):
            words.append(f"{amount:g} {name}s")
        else:
            words.append(f"{amount:g} {name}")
    return ", ".join(words)


def read_nodes(table: Iterable[dict[str, Any]]) -> tuple[Node, ...]:
    """Return the alive nodes of `ray.nodes()`, with nodes of equal resources counted together."""
    counts: dict[tuple[float, float, float | None], int] = {}
    for row in table:
        if row["Alive"]:
            resources = row["Resources"]
            key = (resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory"))
            counts[key] = counts.get(key, 0) + 1
    return tuple(Node(*key, count=count) for key, count in counts.items())


def read_growth() -> tuple[Node, ...]:
    """Groups of nodes that an autoscaler can start on the connected cluster; empty without an autoscaler."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return ()
    groups = []
    for group in config.node_group_configs:
        resources, most = dict(group.resources), group.max_count
        memory = resources.get("memory")
        node = (float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), float(memory) if memory else None)
        groups.append(Node(*node, count=_UNLIMITED if most < 0 else most))
    return tuple(group for group in groups if group.count)


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _remedy(needs: Needs, nodes: list[Node]) -> str:
    """Suggest how to make a worker fit on a node, or the workers on the cluster."""
    if any(node.holds(needs) for node in nodes):
        return "lower training.num_workers, or add nodes"
    ways = []
    if needs.gpus and not any(node.gpus for node in nodes):
        ways.append("set training.use_gpu=false")
    if all(node.cpus < needs.cpus for node in nodes):
        ways.append("lower training.cpus_per_worker")
    if needs.memory_bytes and all((node.memory_bytes or needs.memory_bytes) < needs.memory_bytes for node in nodes):
        ways.append("lower training.patch_ijk, training.batch_size or network.size, which take memory")
    return ", or ".join([*ways, "add a larger node"])
