"""Calls of a function on every node of the connected cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gtvray.errors import GtvrayError


@dataclass(frozen=True)
class NodeAnswer:
    """Answer of a node.

    Attributes:
        node: its address, with its host name where that differs.
        value: what the function returned; None if it failed.
        failure: one line on the error; None if there was none.
    """

    node: str
    value: Any
    failure: str | None = None


def ask_every_node(function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> list[NodeAnswer]:
    """Call a function once on every alive node, without reserving CPUs.

    Args:
        function: function that is importable on every node.
        arguments: its arguments.
        timeout_s: time limit in seconds; nodes that have not responded by then are reported as failed.
    """
    # Not with the module, which commands import before they connect: see `match_cluster`.
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for row in ray.nodes():
        if row["Alive"]:
            there = NodeAffinitySchedulingStrategy(row["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
            asked.append((_name(row), task.remote(*arguments)))
    answers = [reference for _, reference in asked]
    ready, late = ray.wait(answers, num_returns=len(answers), timeout=timeout_s)
    for reference in late:
        ray.cancel(reference, force=True)
    return [_answer(name, reference, reference in ready, timeout_s) for name, reference in asked]


def _answer(name: str, reference: Any, is_ready: bool, timeout_s: float) -> NodeAnswer:
    import ray
    from ray.exceptions import RayError, RayTaskError

    if not is_ready:
        return NodeAnswer(name, None, f"no answer within {timeout_s:g} s")
    try:
        return NodeAnswer(name, ray.get(reference))
    except RayTaskError as error:
        cause = error.cause
        lines = str(cause).splitlines() or [type(cause).__name__]
        text = "; ".join(line.strip() for line in lines) if isinstance(cause, GtvrayError) else lines[-1]
        return NodeAnswer(name, None, text)
    except RayError as error:
        return NodeAnswer(name, None, " ".join(str(error).split()) or type(error).__name__)


def _name(row: dict[str, Any]) -> str:
    address, host = row["NodeManagerAddress"], row["NodeManagerHostname"]
    return str(address) if host == address else f"{address} ({host})"
