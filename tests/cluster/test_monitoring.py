"""Dashboards and alerts use only metrics and labels that Ray or gateways export; Prometheus accepts the rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from gtvray.serving.metrics import _REGISTRY

MONITORING = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
METRICS: dict[str, list[str]] = json.loads((MONITORING / "metrics.json").read_text())
# Of the gateways of the endpoint.
METRICS_OF_GATEWAYS = {
    name: list(metric._labelnames)
    for metric, names in _REGISTRY._collector_to_names.items()
    for name in names
    if isinstance(metric, MetricWrapperBase)
}
# Exported only by nodes with GPUs.
SELDOM = {"ray_node_gpus_utilization"}
# Added by Prometheus.
SCRAPED = {"instance", "job", "le"}
_METRIC = re.compile(r"\b(?:(?:ray|gtvray)_[a-z0-9_]+|up)(?=[\s{\[)]|$)")
_GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
_SELECTED = re.compile(r"([a-zA-Z_]+)\s*(?:=~|!=|=)\s*\"")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Return the expressions of alerts and dashboards, by location."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{file.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


@pytest.mark.parametrize(("where", "expression"), expressions().items(), ids=list(expressions()))
def test_metrics_and_labels_exist(where: str, expression: str) -> None:
    without_groups = _GROUPED.sub("", expression)
    names = set(_METRIC.findall(without_groups))
    assert names
    exported = METRICS | METRICS_OF_GATEWAYS
    assert names - {"up"} <= set(exported) | SELDOM, names
    labels = {label.strip() for group in _GROUPED.findall(expression) for label in group.split(",")}
    labels |= set(_SELECTED.findall(expression))
    known = {label for name in names for label in exported.get(name, [])} | SCRAPED
    if not names & SELDOM:
        assert labels <= known, f"{where}: {labels - known} of {names}"
    for pair in ("()", "{}", "[]"):
        assert expression.count(pair[0]) == expression.count(pair[1])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboards_are_complete(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"] == f"gtvray-{file.stem}"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource"}
    panels = board["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] == "timeseries"
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = any(
            one[axis] + one[size] <= other[axis] or other[axis] + other[size] <= one[axis]
            for axis, size in (("x", "w"), ("y", "h"))
        )
        assert apart


def test_there_is_a_dashboard_for_each_part() -> None:
    assert [file.stem for file in DASHBOARDS] == ["endpoint", "sweeps", "trainers"]


def test_alerts_have_a_severity_and_say_what_happened() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{" in rule["annotations"]["summary"]


def test_prometheus_accepts_the_configuration(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    config = tmp_path / "monitoring" / "prometheus.yml"
    for name in ("ray-token", "metrics-token"):
        (tmp_path / name).write_text("x")
    config.write_text(config.read_text().replace("/etc/gtvray/", f"{tmp_path}/"))
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ray_exports_every_metric_of_the_list(tmp_path: Path) -> None:
    file, script = tmp_path / "found.json", Path(__file__).with_name("scrape.py")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, script, file, *METRICS], env=environment, timeout=220, check=True)
    found = json.loads(file.read_text())
    assert set(METRICS) - set(found) == set()
    assert {name: set(labels) - set(found[name]) for name, labels in METRICS.items()} == {
        name: set() for name in METRICS
    }
