"""Prometheus, with the shipped configuration, scrapes a Ray cluster and an endpoint, and knows every metric of both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gtvray.models import Bundle
from gtvray.runtime import Cluster
from gtvray.serving import Server

from ..conftest import REPOSITORY
from ..ports import free_port
from .conftest import TOKEN, make_scan, predict_remote

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
MONITORING = REPOSITORY / "cluster" / "monitoring"
# Ray exports the metrics of a replica every ten seconds.
_LONGEST_S = 90.0


@pytest.fixture
def query(
    start: Callable[..., Server], bundle: Bundle, local_ray: Cluster, tmp_path: Path
) -> Iterator[Callable[[str], list[Any]]]:
    """Queries of a Prometheus that scrapes the session's cluster and an endpoint every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian's package prometheus)")
    from ray._private.worker import get_dashboard_url

    server = start(bundle)
    predict_remote(server.url, TOKEN, make_scan((30, 30, 20)))
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (tmp_path / "ray-token").write_text(_ray_token())
    (tmp_path / "metrics-token").write_text(TOKEN)
    config = tmp_path / "monitoring" / "prometheus.yml"
    text = config.read_text().replace("/etc/gtvray/", f"{tmp_path}/").replace("127.0.0.1:8265", get_dashboard_url())
    text = text.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    config.write_text(text.replace("scrape_interval: 15s", "scrape_interval: 1s").replace("30s", "1s"))
    port = free_port()
    options = [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen(["prometheus", f"--config.file={config}", *options], stderr=subprocess.DEVNULL)

    def ask(expression: str) -> list[Any]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=10) as answer:
                return list(json.load(answer)["data"]["result"])
        except OSError:
            return []

    yield ask
    process.terminate()
    process.wait(30)


def test_every_expression_of_the_endpoint_has_data(query: Callable[[str], list[Any]]) -> None:
    rules = [
        rule
        for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
        if group["name"] == "endpoint"
        for rule in group["rules"]
    ]
    panels = json.loads((MONITORING / "dashboards" / "endpoint.json").read_text())["panels"]
    # The left side of a comparison: what an alert looks at.
    expressions = [rule["expr"].rpartition(" ")[0].rpartition(" ")[0] for rule in rules]
    expressions += [target["expr"] for panel in panels for target in panel["targets"] if "error" not in target["expr"]]
    # Nothing failed yet, so there is no series of that status.
    expressions = [each.replace('status=~"[45].."', 'status=~"2.."') for each in expressions]
    missing = {*expressions, 'up{job="ray"} == 1', 'up{job="gtvray"} == 1'}
    deadline = time.monotonic() + _LONGEST_S
    while missing and time.monotonic() < deadline:
        missing = {each for each in missing if not query(each)}
        time.sleep(1)
    assert missing == set()


def _ray_token() -> str:
    """The token of the session's cluster."""
    named = os.environ.get("RAY_AUTH_TOKEN")
    return named or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")).read_text().strip()
