"""Promotions and rollbacks that fail, are killed, or run at the same time leave one champion with a decision."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.failpoints import arm
from gtvray.promotion import require_champion
from gtvray.registry import DecisionLog, Registry

from .conftest import Promotions


@pytest.mark.parametrize(
    ("action", "step"),
    [
        ("promote", "registry.uploaded"),
        ("promote", "promotion.registered"),
        ("promote", "decision.recorded"),
        ("promote", "promotion.recorded"),
        ("promote", "promotion.moved"),
        ("rollback", "decision.recorded"),
        ("rollback", "promotion.recorded"),
        ("rollback", "promotion.moved"),
    ],
)
def test_failure_at_any_step_leaves_one_champion_with_a_decision(
    promotions: Promotions, action: str, step: str
) -> None:
    promotions.promote(0)
    promotions.promote(1)
    arm(f"{step}=raise")
    try:
        with pytest.raises(RuntimeError, match="failpoint"):
            promotions.promote(2) if action == "promote" else promotions.rollback()
    finally:
        arm("")
    moved = "3" if action == "promote" else "1"
    champion = require_champion(promotions.registry, promotions.log)
    assert champion is not None
    assert champion.version == (moved if step == "promotion.moved" else "2")
    assert promotions.registry.fetch(champion).digest == champion.digest
    # The next command completes or undoes what was left.
    registered = action == "promote" and step != "registry.uploaded"
    assert promotions.promote(3) == ("4" if registered else "3")
    states = {decision.state for decision in promotions.log.decisions()}
    undone = step in ("decision.recorded", "promotion.recorded")
    assert states == ({"completed", "undone"} if undone else {"completed"})
    assert promotions.rollback() == champion.version


_PROMOTER = """
import json, pathlib, sys, time
from gtvray.errors import InputError
from tests.promotion.conftest import Promotions, make_evidence
from gtvray.tracking import connect_mlflow
job = json.loads(sys.argv[1])
root = pathlib.Path(job["root"])
root.mkdir()
made = Promotions(connect_mlflow(job["uri"], root), root, job["run_id"], make_evidence.__wrapped__())
made.name = job["name"]
made.registry._name = made.log._model = job["name"]
made.bundle(job["seed"])
(root.parent / f"ready-{job['seed']}").touch()
while len(list(root.parent.glob("ready-*"))) < job["count"]: time.sleep(0.01)
done = 0
while done < job["times"]:
    try:
        made.rollback() if job.get("rollback") else made.promote(job["seed"])
        done += 1
    except InputError as error:
        assert "has changed since" in str(error), error
"""


def _start(client: MlflowClient, tmp_path: Path, run_id: str, environment: dict[str, str], **job: object):
    text = json.dumps({"uri": client.tracking_uri, "name": f"model-{tmp_path.name}", "run_id": run_id, **job})
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _PROMOTER, text],
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )


@pytest.mark.slow
def test_concurrent_promotions_of_two_workspaces_are_serialised(
    client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    started = [
        _start(client, tmp_path, run_id, {}, root=str(tmp_path / f"host-{seed}"), seed=seed, count=2, times=3)
        for seed in range(2)
    ]
    try:
        for process in started:
            assert process.wait(100) == 0, process.communicate()[1]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    name = f"model-{tmp_path.name}"
    registry, decisions = Registry(client, name, tmp_path / "bundles"), DecisionLog(client, name, None, "").decisions()
    assert len(decisions) == 6
    assert len({decision.number for decision in decisions}) == 6
    assert len(registry.versions()) == 2
    assert registry.champion().version == decisions[-1].version
    for before, after in itertools.pairwise(decisions):
        assert after.previous == before.version


# State of the decision after the kill, and after the next command.
_KILLED: dict[str, tuple[list[str], list[str]]] = {
    "registry.uploaded": ([], []),
    "promotion.registered": ([], []),
    "decision.recorded": (["intended"], ["undone"]),
    "promotion.recorded": (["intended"], ["undone"]),
    "promotion.moved": (["intended"], ["completed"]),
}


@pytest.mark.parametrize(
    ("action", "step"),
    [
        ("promote", "promotion.moved"),
        *(
            pytest.param(action, step, marks=pytest.mark.slow)
            for action, steps in (("promote", tuple(_KILLED)[:-1]), ("rollback", tuple(_KILLED)[2:]))
            for step in steps
        ),
    ],
)
def test_process_killed_at_any_step_leaves_one_champion_with_a_decision(
    client: MlflowClient, promotions: Promotions, run_id: str, tmp_path: Path, action: str, step: str
) -> None:
    """The lease of the killed process is taken over at once, since it ran on this host."""
    promotions.promote(0)
    promotions.promote(1)
    environment = {"GTVRAY_FAILPOINT": f"{step}=kill"}
    words = {"root": str(tmp_path / "killed"), "seed": 2, "count": 1, "times": 1, "rollback": action == "rollback"}
    process = _start(client, tmp_path, run_id, environment, **words)
    assert process.wait(100) == -9, process.communicate()[1]
    process.communicate()
    after, settled = _KILLED[step]
    assert [decision.state for decision in promotions.log.decisions()[2:]] == after
    moved = "3" if action == "promote" else "1"
    champion = promotions.champion
    assert champion == (moved if step == "promotion.moved" else "2")
    assert promotions.registry.fetch(promotions.registry.champion()).digest == promotions.registry.champion().digest
    registered = action == "promote" and step != "registry.uploaded"
    assert promotions.promote(3) == ("4" if registered else "3")
    assert [decision.state for decision in promotions.log.decisions()[2:]] == [*settled, "completed"]
    assert promotions.rollback() == champion


@pytest.mark.parametrize(
    "step",
    ["registry.uploaded", *(pytest.param(step, marks=pytest.mark.slow) for step in tuple(_KILLED)[1:])],
)
def test_disk_that_is_full_at_any_step_delays_the_promotion(promotions: Promotions, step: str) -> None:
    promotions.promote(0)
    arm(f"{step}=enospc")
    try:
        with pytest.raises(OSError, match="No space left"):
            promotions.promote(1)
    finally:
        arm("")
    moved = step == "promotion.moved"
    assert promotions.champion == ("2" if moved else "1")
    assert promotions.promote(1) == "2" == promotions.champion
    assert promotions.rollback() == "1"
