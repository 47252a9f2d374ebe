"""Looks of the gate in MLflow: recorded before scoring, kept when deleted, and apart from decisions."""

from __future__ import annotations

from pathlib import Path

from mlflow.tracking import MlflowClient

from gtvray.registry import DecisionLog, Look


def test_looks_of_two_workspaces_are_one_log(client: MlflowClient, tmp_path: Path) -> None:
    name = f"model-{tmp_path.name}"
    here, there = (DecisionLog(client, name, tmp_path, by) for by in ("Ada", "Grace"))
    assert here.looks.looks() == []
    many = frozenset(f"{number:064x}" for number in range(83))
    first = here.looks.begin(Look("digest-1", many, 1, 0.95))
    client.delete_run(first)
    second = there.looks.begin(Look("digest-2", frozenset(["scan"]), 2, 0.9875))
    there.looks.complete(second)
    found = {look.run_id: look for look in here.looks.looks()}
    assert found[first].scans == many, "digests that exceed one tag, of a run that was deleted in MLflow"
    assert [(look.digest, look.by, look.number, look.level, look.state) for look in found.values()] == [
        ("digest-1", "Ada", 1, 0.95, "begun"),
        ("digest-2", "Grace", 2, 0.9875, "completed"),
    ]
    here.looks.complete(first)
    here.looks.complete("")
    assert {look.state for look in here.looks.looks() if look.run_id == first} == {"begun"}, "refused by MLflow"
    assert here.decisions() == []
