"""Nothing calls home: not gtvray, and none of the libraries and processes it starts.

Commands run without pytest's environment variables, with which MLflow disables its telemetry, in a network whose
packets are logged, and with a proxy that records and refuses every request.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli.command import ONE_TRIAL_SWEEP
from .namespaces import with_own_network

# With any of these, MLflow or OpenVINO assumes that it runs in a test.
_TEST_SIGNS = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION", "GITHUB_ACTIONS", "CI", "GITLAB_CI", "JENKINS_URL", "TF_BUILD")
_SWITCHES = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED", "RAY_USAGE_STATS_PROMPT_ENABLED")
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
_PACKETS = Path(__file__).with_name("packets.py")


class RecordingProxy:
    """A proxy that records the first line of every request and refuses it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).split(b"\r\n")[0].decode("latin-1"))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    recording = RecordingProxy()
    yield recording
    recording.close()


def environment(home: Path, **changes: str) -> dict[str, str]:
    """Return a user's environment, without variables that indicate a test or disable telemetry."""
    hidden = {*_TEST_SIGNS, *_SWITCHES, *_PROXIES, "RAY_ADDRESS"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(home)} | changes


def behind(proxy: RecordingProxy) -> dict[str, str]:
    return dict.fromkeys(_PROXIES, proxy.url) | {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}


def packets_of(folder: Path, *command: object) -> list[str]:
    """Run a command; return the packets that it tries to send to other machines."""
    log = folder / "packets.log"
    line = [*with_own_network(), sys.executable, str(_PACKETS), str(log), *map(str, command)]
    done = subprocess.run(line, env=environment(folder), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return sorted(set(log.read_text().splitlines()))


def test_recorder_sees_connections(tmp_path: Path) -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('169.254.169.254', 80))"
    )
    assert packets_of(tmp_path, sys.executable, "-c", code) == ["udp 169.254.169.254:80"]


# Uses the store like evaluations and sweeps. MLflow requests its telemetry settings in the background.
_USE_MLFLOW = """
import sys
from pathlib import Path
from gtvray.tracking import connect_mlflow, experiment_id, find_or_create_run
client = connect_mlflow("sqlite:///mlflow.db", Path("artifacts"))
client.log_metric(find_or_create_run(client, experiment_id(client, "mine", None), "key", {}), "dsc", 1.0)
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
"""


@pytest.fixture
def use_mlflow() -> list[str]:
    return [sys.executable, "-c", _USE_MLFLOW]


@pytest.mark.slow
def test_mlflow_sends_nothing(tmp_path: Path, use_mlflow: list[str]) -> None:
    assert packets_of(tmp_path, *use_mlflow) == []


@pytest.mark.slow
def test_mlflow_asks_a_proxy_for_nothing(tmp_path: Path, use_mlflow: list[str], proxy: RecordingProxy) -> None:
    subprocess.run(use_mlflow, env=environment(tmp_path, **behind(proxy)), cwd=tmp_path, check=True)
    assert proxy.asked == []


_START_RAY = """
import time
from pathlib import Path
from gtvray.runtime import connect
with connect(cpus=1):
    import ray
    from ray._private.worker import _global_node
    log = Path(_global_node.get_session_dir_path()) / "logs" / "dashboard.log"
    # The modules begin their work once this line is there.
    while not (loaded := [line for line in log.read_text().splitlines() if "dashboard head modules: [" in line]):
        time.sleep(0.1)
    assert "UsageStatsHead" not in loaded[0], loaded
    ray.get(ray.remote(lambda: 1).remote())
"""


@pytest.mark.slow
@pytest.mark.ray
def test_ray_asks_for_no_cloud(tmp_path: Path) -> None:
    assert packets_of(tmp_path, sys.executable, "-c", _START_RAY) == []


_MAIN_JOB = """
set -e
gtvray() { "$PYTHON" -m gtvray "$@"; }
gtvray sweep one.yaml --data "$DATA" --workspace runs
bundle=$(ls -d runs/bundles/*)
gtvray evaluate --data "$DATA" --model "$bundle" --workspace runs
export GTVRAY_TOKEN=secret
"$PYTHON" -m gtvray serve --model "$bundle" --workspace runs --port 18000 2>serve.log &
server=$!
trap 'kill $server || true' EXIT
until grep -q "until Ctrl-C" serve.log; do kill -0 $server && sleep 0.5; done
scan=$(find "$DATA" -name data.nii.gz | head -1)
gtvray predict "$scan" -o served.nii.gz --server http://127.0.0.1:18000
gtvray predict "$scan" -o local.nii.gz --model "$bundle" --workspace runs
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_pipeline_contacts_nobody(tmp_path: Path, phantoms: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE_TRIAL_SWEEP)
    setting = f"PYTHON={sys.executable}", f"DATA={phantoms}"
    assert packets_of(tmp_path, "env", *setting, "bash", "-c", _MAIN_JOB) == []
    assert (tmp_path / "served.nii.gz").read_bytes() == (tmp_path / "local.nii.gz").read_bytes()
