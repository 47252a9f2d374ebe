"""The endpoint end to end, on a local Ray."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray

from gtvray.config import ServingConfig
from gtvray.errors import AuthError, InputError, ResourceError, TooLargeError, VolumeError
from gtvray.inference import Predictor
from gtvray.io import decode_nifti, encode_nifti, write_volume
from gtvray.models import Bundle
from gtvray.serving import Server, start_server

from ..ports import free_port
from ..proxies import refusing_proxy, serving, set_proxy
from .conftest import TOKEN, log_lines, make_scan, predict_remote, wait_for_log

pytestmark = pytest.mark.ray
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], bundle: Bundle) -> Server:
    return start(bundle, max_upload_mb=1, max_pending=6)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=BEARER, timeout=100) as client:
        yield client


def check_problem(response: httpx.Response, status: int, kind: str) -> dict[str, object]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert problem["type"] == kind
    assert problem["status"] == status
    assert problem["instance"] == response.headers["X-Request-ID"]
    return problem


def test_concurrent_masks_equal_offline_masks(server: Server, bundle: Bundle) -> None:
    scans = [make_scan((40 + 6 * n, 44, 30), seed=n) for n in range(6)]
    offline = Predictor(bundle, threads=1)
    expected = [offline.predict(scan) for scan in scans]
    with ThreadPoolExecutor(len(scans)) as pool:
        results = list(pool.map(lambda scan: predict_remote(server.url, TOKEN, scan), scans))
    for scan, mask, result in zip(scans, expected, results, strict=True):
        assert 0 < mask.array.sum() < mask.array.size
        assert np.array_equal(result.mask.array, mask.array)
        assert result.mask.same_grid(scan)
        assert result.mask.array.dtype == np.uint8
        assert result.volume_ml == pytest.approx(mask.array.sum(dtype=int) * 0.027, abs=1e-3)
        assert result.patches == offline.begin(scan).patches
        assert (result.coverage.mode, result.coverage.fallback) == ("body", None)
        assert 0 <= result.coverage.volume_skipped_share < 1
        assert (result.model_digest, result.model_version) == (bundle.digest, "7")
        assert "not a medical device" in result.notice


def test_segment_answers_with_the_mask_or_with_json(http: httpx.Client, bundle: Bundle) -> None:
    scan = make_scan((40, 44, 30))
    content = encode_nifti(scan, compress=True)
    mask = http.post("/v1/segment", content=content)
    answered = http.post("/v1/segment", content=content, headers={"Accept": "application/json"})
    document = answered.json()
    assert base64.b64decode(document["mask"]["base64"]) == mask.content
    assert np.array_equal(decode_nifti(gzip.decompress(mask.content)).array, Predictor(bundle).predict(scan).array)
    assert document["model"] == {"name": "gtvray-gtv", "version": "7", "digest": bundle.digest}
    assert document["request_id"] == answered.headers["X-Request-ID"]
    assert f"{document['volume_ml']:.3f}" == mask.headers["X-Gtvray-Volume-Ml"]
    assert set(document["uncertainty"]) == {"expected_dice_loss", "mean_entropy_bits"}
    assert set(document["timings_s"]) == {"wait", "prepare", "locate", "patches", "mask", "total"}
    refused = http.post("/v1/segment", content=content, headers={"Accept": "text/html"})
    check_problem(refused, 406, "urn:gtvray:NotAcceptableError")


def test_file_is_sent_unchanged(server: Server, tmp_path: Path) -> None:
    scan = make_scan((40, 40, 30))
    write_volume(tmp_path / "scan.nii", scan)
    assert predict_remote(server.url, TOKEN, tmp_path / "scan.nii").mask.same_grid(scan)


def test_token_is_required_everywhere_except_at_the_probes(server: Server) -> None:
    for path, method in (("/v1/predict", "POST"), ("/v1/model", "GET"), ("/openapi.json", "GET"), ("/no", "GET")):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            response = httpx.request(method, server.url + path, headers=headers)
            check_problem(response, 401, "urn:gtvray:AuthError")
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert httpx.get(server.url + "/healthz").status_code == 200
    assert httpx.get(server.url + "/readyz").json() == {"status": "ready", "golden": "none"}
    with pytest.raises(AuthError, match="bearer token"):
        predict_remote(server.url, "wrong", make_scan((20, 20, 20)))


def test_model_is_described(http: httpx.Client, bundle: Bundle) -> None:
    described = http.get("/v1/model").json()
    assert described["digest"] == bundle.digest
    assert described["version"] == "7"
    assert described["labels"] == {"GTV": 1}
    assert described["preprocessing"]["spacing_mm"] == [3.0, 3.0, 3.0]
    assert "Research use only" in described["intended_use"]


def test_upload_over_the_limit_is_rejected(http: httpx.Client, server: Server) -> None:
    over = os.urandom((1 << 20) + 1)
    check_problem(http.post("/v1/predict", content=over), 413, "urn:gtvray:TooLargeError")
    # Without a Content-Length the bytes are counted as they arrive; the body starts like a volume file.
    chunks = [encode_nifti(make_scan((30, 30, 20)), compress=False), *[over[:700_000]] * 2]
    check_problem(http.post("/v1/predict", content=iter(chunks)), 413, "urn:gtvray:TooLargeError")
    with pytest.raises(TooLargeError, match="upload is too large"):
        predict_remote(server.url, TOKEN, make_scan((200, 200, 60)))


@pytest.mark.parametrize("damage", ["truncated", "noise", "text", "gzip bomb"])
def test_damaged_upload_is_a_client_error(http: httpx.Client, damage: str) -> None:
    valid = encode_nifti(make_scan((30, 30, 20)), compress=True)
    content = {
        "truncated": valid[: len(valid) // 2],
        "noise": valid[:200] + os.urandom(200) + valid[400:],
        "text": b"not a scan",
        "gzip bomb": gzip.compress(encode_nifti(make_scan((20, 20, 20)), compress=False) + bytes(2 << 20)),
    }[damage]
    problem = check_problem(http.post("/v1/predict", content=content), 422, "urn:gtvray:VolumeError")
    assert problem["where"] == "upload"


def test_other_invalid_requests_are_problems(http: httpx.Client, server: Server) -> None:
    check_problem(http.post("/v1/predict", content=b""), 422, "urn:gtvray:InputError")
    check_problem(http.get("/v1/predict"), 405, "about:blank")
    check_problem(http.get("/nowhere"), 404, "about:blank")
    scan = make_scan((20, 20, 20))
    with pytest.raises(InputError, match="Hounsfield"):
        predict_remote(server.url, TOKEN, scan.with_array(scan.array.clip(0)))
    with pytest.raises(VolumeError, match="not a NIfTI or NRRD file"):
        predict_remote(server.url, TOKEN, Path(__file__))


def test_request_id_is_in_the_logs_of_both_deployments(server: Server, http: httpx.Client) -> None:
    request_id = str(uuid.uuid4())
    result = predict_remote(server.url, TOKEN, make_scan((30, 30, 20)), request_id=request_id)
    assert result.request_id == request_id
    assert "status=200" in wait_for_log("Gateway", f"event=request request={request_id}")
    assert f"patches={result.patches}" in wait_for_log("Model", f"event=predicted request={request_id}")


def test_invalid_request_id_is_replaced_and_appears_in_no_log(http: httpx.Client) -> None:
    response = http.get("/nowhere", headers={"X-Request-ID": "Doe, John", "X-Session-ID": "Doe, Jane"})
    problem = check_problem(response, 404, "about:blank")
    assert response.headers.get_list("X-Request-ID") == [problem["instance"]]
    assert len(str(problem["instance"])) == 32
    assert "status=404" in wait_for_log("Gateway", f"event=request request={problem['instance']}")
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert not [path for path in logs.rglob("*") if path.is_file() and b"Doe, J" in path.read_bytes()]


def test_head_options_and_trailing_slash_through_serve(http: httpx.Client) -> None:
    head = http.head("/readyz")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "34")
    options = http.options("/v1/predict", headers={"Authorization": ""})
    assert (options.status_code, options.headers["Allow"]) == (204, "POST, OPTIONS")
    scan = encode_nifti(make_scan((30, 30, 20)), compress=True)
    assert http.post("/v1/predict/", content=scan).content == http.post("/v1/predict", content=scan).content
    check_problem(http.post("/v1/predict", files={"file": scan}), 415, "urn:gtvray:ContentTypeError")


def test_nrrd_scan_gets_the_same_mask_on_its_own_grid(server: Server, tmp_path: Path) -> None:
    scan = make_scan((36, 34, 30))
    write_volume(tmp_path / "scan.nrrd", scan)
    result = predict_remote(server.url, TOKEN, tmp_path / "scan.nrrd")
    assert result.mask.same_grid(scan)
    assert np.array_equal(result.mask.array, predict_remote(server.url, TOKEN, scan).mask.array)


def test_scan_bypasses_proxies_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(refusing_proxy()) as proxy:
        set_proxy(monkeypatch, proxy.port)
        server.wait_ready(10)
        assert predict_remote(server.url, TOKEN, make_scan((30, 30, 20))).patches > 0
        assert proxy.seen == []


def test_api_process_loads_no_torch(server: Server) -> None:
    loaded = {name: "libtorch" in Path(f"/proc/{pid}/maps").read_text() for name, pid in replicas().items()}
    assert loaded == {"Gateway": False, "Model": True}


def test_disconnected_client_frees_the_model(server: Server, large_scan: bytes) -> None:
    request_id = uuid.uuid4().hex
    headers = {**BEARER, "X-Request-ID": request_id}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/predict", content=large_scan, headers=headers, timeout=httpx.Timeout(20, read=2))
    wait_for_log("Model", f"event=cancelled request={request_id}")
    assert not log_lines("Model", f"event=predicted request={request_id}")
    assert "status=disconnected" in wait_for_log("Gateway", f"event=request request={request_id}")


@pytest.mark.slow
def test_request_survives_the_loss_of_its_replica(server: Server, bundle: Bundle) -> None:
    scan = make_scan((100, 100, 80))
    killed = threading.Event()

    def kill_when_busy() -> None:
        pid = replicas()["Model"]
        # By then the request has passed the ingress and reached the replica.
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    result = predict_remote(server.url, TOKEN, scan, request_id=str(uuid.uuid4()), timeout_s=100)
    assert killed.is_set(), "the scan is large enough to be in progress when the replica is killed"
    killer.join()
    wait_for_log("Gateway", f"event=replica_lost request={result.request_id}")
    assert np.array_equal(result.mask.array, Predictor(bundle, threads=1).predict(scan).array)


def replicas() -> dict[str, int]:
    """Process id of the replica of each deployment."""
    import ray
    from ray.util.state import list_actors

    # Without an address, list_actors may select another cluster on this machine.
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address, filters=[("state", "=", "ALIVE")])
    return {a.class_name.rpartition(":")[2]: a.pid for a in actors if a.class_name.startswith("ServeReplica:gtvray:")}


def test_second_server_is_rejected(server: Server, bundle: Bundle) -> None:
    taken = int(server.url.rpartition(":")[2])
    with pytest.raises(ResourceError, match="port is in use"):
        start_server(bundle.folder, ServingConfig(port=taken), TOKEN)
    with pytest.raises(ResourceError, match="already runs Serve"):
        start_server(bundle.folder, ServingConfig(port=free_port()), TOKEN)


def test_response_is_a_gzipped_nifti_with_one_request_id(http: httpx.Client) -> None:
    response = http.post("/v1/predict", content=encode_nifti(make_scan((30, 30, 20)), compress=True))
    assert response.headers["content-type"] == "application/gzip"
    assert response.headers.get_list("X-Request-ID") != []
    assert len(response.headers.get_list("X-Request-ID")) == 1
    assert decode_nifti(gzip.decompress(response.content)).shape == (30, 30, 20)
