"""Commands that write to one workspace at the same time, in processes of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ..bundles import random_bundle
from .command import KILLED_GONE_S, ONE_TRIAL_SWEEP, OPEN_GATE, Running, run
from .test_train import SETTINGS


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_training_evaluation_and_promotion_run_beside_a_sweep(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(ONE_TRIAL_SWEEP)
    (tmp_path / "tiny.yaml").write_text(SETTINGS.replace("epochs: 3", "epochs: 1"))
    place = ("--workspace", tmp_path / "runs")
    arguments = ("sweep", tmp_path / "space.yaml", "--data", phantoms, *place)
    # The sweep runs until it is interrupted.
    sweep = Running(*arguments, GTVRAY_FAILPOINT="tuning.after_report=hang")
    name = re.search(r"^sweep: (\S+):", sweep.wait_for("\nsweep: "), re.MULTILINE)
    assert name is not None

    taken = run(*arguments, "--resume", name[1]).error(code=1)
    assert "another gtvray process" in taken
    assert f"found: process {sweep.pid} on" in taken

    trained = run("train", tmp_path / "tiny.yaml", "--data", phantoms, *place, "--json", within_s=400)
    assert trained.code == 0, trained
    bundle = json.loads(trained.stdout)["bundle"]
    promoted = run("promote", bundle, "--data", phantoms, *place, *OPEN_GATE, "--json", within_s=400)
    assert promoted.code == 0, promoted
    other = random_bundle(tmp_path / "other", 1)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "1").symlink_to(phantoms / "1")
    evaluated = run("evaluate", "--data", tmp_path / "few", "-m", other.folder, *place, "--json", within_s=400)
    assert evaluated.code == 0, evaluated
    assert evaluated.json()["mlflow"] is not None, "they share one database"

    sweep.interrupt()
    assert sweep.end(KILLED_GONE_S).code != 0
    assert sweep.strays() == []
