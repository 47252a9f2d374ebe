"""An endpoint whose replica is killed at its fifth patch: `python deadly_scan.py FILE` writes the results.

It runs in its own process, because the failpoint must be in the environment before Ray starts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import httpx

os.environ["GTVRAY_FAILPOINT"] = "serving.patch:5=kill"
sys.path.insert(0, str(Path(__file__).parents[3]))

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.io import encode_nifti
from gtvray.runtime import connect
from gtvray.serving import Server, start_server
from tests.bundles import random_bundle
from tests.ports import free_port
from tests.serving.conftest import TOKEN, make_scan


def main(file: Path, folder: Path) -> None:
    bundle = random_bundle(folder / "bundle", inference=InferenceConfig(threshold=0.5))
    with connect(cpus=2):
        server = start_server(bundle.folder, ServingConfig(port=free_port(), memory_gb_per_replica=0), TOKEN)
        try:
            server.wait_ready(100)
            large = encode_nifti(make_scan((60, 60, 60)), compress=True)
            small = encode_nifti(make_scan((20, 20, 20)), compress=True)
            deadly, again, other = post(server, large), post(server, large), post(server, small)
            found = {
                "status": [deadly.status_code, again.status_code, other.status_code],
                "reason": deadly.json().get("found"),
            }
        finally:
            server.stop()
    file.write_text(json.dumps(found))


def post(server: Server, content: bytes) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.post(f"{server.url}/v1/predict", content=content, headers=headers, timeout=100, trust_env=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]), Path(folder))
