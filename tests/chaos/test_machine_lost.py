"""A training whose workers are lost with their machine continues on another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.training import fit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_training_survives_a_lost_machine(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    cases = {
        side: [[case.case_id, str(case.folder), case.meta] for case in part]
        for side, part in (("train", train), ("selection", selection))
    }
    pair = with_dotted(config, {"training.num_workers": 2}).model_dump(mode="json")
    (tmp_path / "job.json").write_text(json.dumps({"config": pair, **cases}))
    script = str(Path(__file__).with_name("machines.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # A worker hangs in the third epoch (of three steps), so that the training cannot finish before the machine is lost.
    (tmp_path / "once").mkdir()
    environment |= {VARIABLE: "training.before_step@0:8=hang", ONCE_VARIABLE: str(tmp_path / "once")}
    subprocess.run([sys.executable, script, str(tmp_path)], env=environment, timeout=800, check=True)
    found = json.loads((tmp_path / "reports.json").read_text())
    alone = [[report.epoch, pytest.approx(report.train_loss, rel=1e-5)] for report in
             fit(config, train, selection, tmp_path / "alone")]  # fmt: skip
    assert [entry[:2] for entry in found["reports"]] == alone
    (note,) = [notes for *_, notes in found["reports"] if notes]
    assert "workers restarted after epoch" in note
    assert found["left"] == []
