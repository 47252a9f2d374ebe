"""The endpoint end to end, on a local Ray."""

from __future__ import annotations

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
from gtvray.serving import Server, predict_remote, start_server

from ..proxies import refusing_proxy, serving, set_proxy
from .conftest import TOKEN, free_port, log_lines, make_scan, wait_for_log

pytestmark = pytest.mark.ray
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], bundle: Bundle) -> Server:
    return start(bundle, max_upload_mb=1, max_pending=6, scans_in_memory=3)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=BEARER, timeout=100) as client:
        yield client


def check_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, object]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = answer.json()
    assert problem["type"] == kind
    assert problem["status"] == status
    assert problem["instance"] == answer.headers["X-Request-ID"]
    return problem


def test_concurrent_masks_are_the_offline_ones_voxel_for_voxel(server: Server, bundle: Bundle) -> None:
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


def test_file_is_sent_as_it_is(server: Server, tmp_path: Path) -> None:
    scan = make_scan((40, 40, 30))
    write_volume(tmp_path / "scan.nii", scan)
    assert predict_remote(server.url, TOKEN, tmp_path / "scan.nii").mask.same_grid(scan)


def test_token_is_asked_for_everywhere_but_at_the_probes(server: Server) -> None:
    for path, method in (("/v1/predict", "POST"), ("/v1/model", "GET"), ("/openapi.json", "GET"), ("/no", "GET")):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = httpx.request(method, server.url + path, headers=headers)
            check_problem(answer, 401, "urn:gtvray:AuthError")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
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


def test_upload_over_the_limit_is_refused(http: httpx.Client, server: Server) -> None:
    over = os.urandom((1 << 20) + 1)
    check_problem(http.post("/v1/predict", content=over), 413, "urn:gtvray:TooLargeError")
    # Without a Content-Length the bytes are counted as they come, of what begins as a volume does.
    begun = [encode_nifti(make_scan((30, 30, 20)), compress=False), *[over[:700_000]] * 2]
    check_problem(http.post("/v1/predict", content=iter(begun)), 413, "urn:gtvray:TooLargeError")
    with pytest.raises(TooLargeError, match="upload is too large"):
        predict_remote(server.url, TOKEN, make_scan((200, 200, 60)))


@pytest.mark.parametrize("damage", ["cut", "noise", "text", "bomb"])
def test_damaged_upload_is_the_senders_fault(http: httpx.Client, damage: str) -> None:
    whole = encode_nifti(make_scan((30, 30, 20)), compress=True)
    content = {
        "cut": whole[: len(whole) // 2],
        "noise": whole[:200] + os.urandom(200) + whole[400:],
        "text": b"not a scan",
        "bomb": gzip.compress(encode_nifti(make_scan((20, 20, 20)), compress=False) + bytes(2 << 20)),
    }[damage]
    problem = check_problem(http.post("/v1/predict", content=content), 422, "urn:gtvray:VolumeError")
    assert problem["where"] == "upload"


def test_other_misuse_is_told_in_problems(http: httpx.Client, server: Server) -> None:
    check_problem(http.post("/v1/predict", content=b""), 422, "urn:gtvray:InputError")
    check_problem(http.get("/v1/predict"), 405, "about:blank")
    check_problem(http.get("/nowhere"), 404, "about:blank")
    scan = make_scan((20, 20, 20))
    with pytest.raises(InputError, match="Hounsfield"):
        predict_remote(server.url, TOKEN, scan.with_array(scan.array.clip(0)))
    with pytest.raises(VolumeError, match="not a NIfTI or NRRD file"):
        predict_remote(server.url, TOKEN, Path(__file__))


def test_request_id_goes_through_to_both_logs(server: Server, http: httpx.Client) -> None:
    request_id = str(uuid.uuid4())
    result = predict_remote(server.url, TOKEN, make_scan((30, 30, 20)), request_id=request_id)
    assert result.request_id == request_id
    assert "status=200" in wait_for_log("Api", f"event=request request={request_id}")
    assert f"patches={result.patches}" in wait_for_log("Model", f"event=predicted request={request_id}")


def test_unfit_request_id_is_replaced_and_stands_in_no_log(http: httpx.Client) -> None:
    answer = http.get("/nowhere", headers={"X-Request-ID": "Doe, John", "X-Session-ID": "Doe, Jane"})
    problem = check_problem(answer, 404, "about:blank")
    assert answer.headers.get_list("X-Request-ID") == [problem["instance"]]
    assert len(str(problem["instance"])) == 32
    assert "status=404" in wait_for_log("Api", f"event=request request={problem['instance']}")
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert not [path for path in logs.rglob("*") if path.is_file() and b"Doe, J" in path.read_bytes()]


def test_what_serves_own_proxy_would_act_on_or_stumble_over_is_a_problem(http: httpx.Client) -> None:
    for name in (b"x-request-disconnect-disabled", b"x-request-timeout-seconds"):
        for value in (b"?1", b"0.001", b"\xe9"):
            check_problem(http.get("/readyz", headers=[(name, value)]), 400, "urn:gtvray:RequestError")
    for name in (b"x-session-id", b"serve_multiplexed_model_id"):
        check_problem(http.get("/readyz", headers=[(name, b"\xe9")]), 400, "urn:gtvray:RequestError")
    assert http.get("/readyz", headers=[(b"x-request-id", b"\xe9"), (b"traceparent", b"\xe9")]).status_code == 200


def test_head_options_and_a_trailing_slash_through_serve(http: httpx.Client) -> None:
    head = http.head("/readyz")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "34")
    options = http.options("/v1/predict", headers={"Authorization": ""})
    assert (options.status_code, options.headers["Allow"]) == (204, "POST, OPTIONS")
    scan = encode_nifti(make_scan((30, 30, 20)), compress=True)
    assert http.post("/v1/predict/", content=scan).content == http.post("/v1/predict", content=scan).content
    check_problem(http.post("/v1/predict", files={"file": scan}), 415, "urn:gtvray:ContentTypeError")


def test_nrrd_gets_the_same_mask_on_its_own_grid(server: Server, tmp_path: Path) -> None:
    scan = make_scan((36, 34, 30))
    write_volume(tmp_path / "scan.nrrd", scan)
    result = predict_remote(server.url, TOKEN, tmp_path / "scan.nrrd")
    assert result.mask.same_grid(scan)
    assert np.array_equal(result.mask.array, predict_remote(server.url, TOKEN, scan).mask.array)


def test_no_proxy_of_the_environment_sees_a_scan(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(refusing_proxy()) as proxy:
        set_proxy(monkeypatch, proxy.port)
        server.wait_ready(10)
        assert predict_remote(server.url, TOKEN, make_scan((30, 30, 20))).patches > 0
        assert proxy.seen == []


def test_api_process_has_no_torch(server: Server) -> None:
    loaded = {name: "libtorch" in Path(f"/proc/{pid}/maps").read_text() for name, pid in replicas().items()}
    assert loaded == {"Api": False, "Model": True}


def test_client_that_leaves_frees_the_model(server: Server, large_scan: bytes) -> None:
    leaves = uuid.uuid4().hex
    headers = {**BEARER, "X-Request-ID": leaves}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/predict", content=large_scan, headers=headers, timeout=httpx.Timeout(20, read=2))
    wait_for_log("Model", f"event=cancelled request={leaves}")
    assert not log_lines("Model", f"event=predicted request={leaves}")
    assert "status=gone" in wait_for_log("Api", f"event=request request={leaves}")


def test_replica_killed_during_a_request_costs_time_only(server: Server, bundle: Bundle) -> None:
    scan = make_scan((100, 100, 80))
    killed = threading.Event()

    def kill_when_busy() -> None:
        pid = replicas()["Model"]
        # The request is with the replica once it is past the ingress.
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    result = predict_remote(server.url, TOKEN, scan, request_id=str(uuid.uuid4()), timeout_s=100)
    assert killed.is_set(), "the scan is large enough to be under way when the replica dies"
    killer.join()
    wait_for_log("Api", f"event=replica_lost request={result.request_id}")
    assert np.array_equal(result.mask.array, Predictor(bundle, threads=1).predict(scan).array)


def replicas() -> dict[str, int]:
    """Process id of each deployment's replica."""
    import ray
    from ray.util.state import list_actors

    # Left alone, this finds "the" cluster of the machine, which need not be ours.
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address, filters=[("state", "=", "ALIVE")])
    return {a.class_name.rpartition(":")[2]: a.pid for a in actors if a.class_name.startswith("ServeReplica:gtvray:")}


def test_second_server_is_refused(server: Server, bundle: Bundle) -> None:
    taken = int(server.url.rpartition(":")[2])
    with pytest.raises(ResourceError, match="port is in use"):
        start_server(bundle.folder, ServingConfig(port=taken), TOKEN)
    with pytest.raises(ResourceError, match="already runs Serve"):
        start_server(bundle.folder, ServingConfig(port=free_port()), TOKEN)


def test_mask_header_is_readable_by_others(http: httpx.Client) -> None:
    answer = http.post("/v1/predict", content=encode_nifti(make_scan((30, 30, 20)), compress=True))
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers.get_list("X-Request-ID") != []
    assert len(answer.headers.get_list("X-Request-ID")) == 1
    assert decode_nifti(gzip.decompress(answer.content)).shape == (30, 30, 20)
