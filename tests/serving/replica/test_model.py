"""A replica in this process: masks, rejection before decompression, and patches of the locator in the scheduler."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.errors import DataError, GtvrayError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.inference import Predictor
from gtvray.io import encode_nifti
from gtvray.io.stream import Source
from gtvray.models import Bundle
from gtvray.serving.arguments import AppArguments
from gtvray.serving.replica.deployment import Model
from gtvray.serving.transfer.sealed import new_key
from gtvray.serving.transfer.spool import Body
from gtvray.serving.transfer.work import Work

from ...bundles import random_bundle
from ..conftest import make_scan


def work_of(folder: Path, content: bytes) -> Work:
    name = hashlib.sha256(content).hexdigest()
    (folder / name).write_bytes(content)
    body = Body(folder / name, len(content), name)
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "node"
    return Work(body, folder / f"{name}.mask", new_key(), folder / f"{name}.at", node)


async def mask_of(model: Model, work: Work) -> bytes:
    answer = await model.predict(work, "r")
    mask = work.read_result(answer.mask_bytes)
    work.remove()
    return mask


def test_masks_of_concurrent_scans_equal_offline_ones(bundle: Bundle, tmp_path: Path) -> None:
    scans = [make_scan((40 + 6 * n, 44, 30), seed=n) for n in range(4)]
    works = [work_of(tmp_path, encode_nifti(scan, compress=True)) for scan in scans]

    async def run() -> list[bytes]:
        model = Model(AppArguments(bundle=bundle.folder))
        return await asyncio.gather(*(mask_of(model, work) for work in works))

    masks = asyncio.run(run())
    offline = Predictor(bundle, threads=1)
    assert masks == [encode_nifti(offline.predict(scan), compress=True) for scan in scans]


def test_answer_has_the_uncertainty_of_its_mask(bundle: Bundle, tmp_path: Path) -> None:
    scan = make_scan((40, 44, 30))
    work = work_of(tmp_path, encode_nifti(scan, compress=True))
    found = asyncio.run(Model(AppArguments(bundle=bundle.folder)).predict(work, "r")).prediction.uncertainty
    work.remove()
    offline = Predictor(bundle, threads=1)
    request = offline.begin(scan, mask_only=True)
    offline.run(request)
    assert found == request.uncertainty(request.mask())
    assert found is not None
    assert found.expected_dice_loss is not None
    assert 0 < found.expected_dice_loss < 1


def test_description_states_licence_and_an_overridden_gate(tmp_path: Path) -> None:
    info = {"training_data": {"licence": "CC BY-NC 4.0"}}
    bundle = random_bundle(tmp_path / "licensed", 1, info)
    for reason, shown in (("needed for a study", "needed for a study"), ("", None)):
        model = Model(AppArguments(bundle=bundle.folder, override=reason))
        described = asyncio.run(model.describe())
        assert (described["gate_override"], described["licence_of_training_data"]) == (shown, "CC BY-NC 4.0")


def test_locator_s_patches_pass_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = random_bundle(tmp_path / "coarse", 1)
    settings = InferenceConfig(mode="localised", threshold=0.5)
    bundle = random_bundle(tmp_path / "fine", 2, inference=settings, locator=coarse)
    scan = make_scan((60, 60, 50))
    work, batches = work_of(tmp_path, encode_nifti(scan, compress=True)), []

    async def run() -> bytes:
        model = Model(AppArguments(bundle=bundle.folder))
        assert model._locating is not None
        forward = model._locating.forward

        def recorded(channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            batches.append(len(channels))
            return forward(channels)

        model._locating.forward = recorded
        return await mask_of(model, work)

    offline = Predictor(bundle, threads=1)
    assert offline.locator is not None
    expected = encode_nifti(offline.predict(scan), compress=True)
    assert asyncio.run(run()) == expected
    assert len(batches) == offline.locator.begin(offline.prepare(scan)).patches


def scan_of(shape: tuple[int, int, int], spacing_mm: float) -> bytes:
    array = np.full(shape, -1000, np.int16)
    array[1:-1, 1:-1, 1:-1] = 40
    return encode_nifti(Volume(array, np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])), compress=True)


def with_slope(content: bytes, slope: float) -> bytes:
    return content[:112] + np.float32(slope).tobytes() + content[116:]


PLAIN = encode_nifti(make_scan((20, 20, 20)), compress=False)


@pytest.mark.parametrize(
    ("content", "kind", "what"),
    [
        (scan_of((110, 110, 110), 20.0), TooLargeError, "more memory than one scan may"),
        (PLAIN[:42] + np.array([30_000] * 3, "<i2").tobytes() + PLAIN[48:], TooLargeError, "too large"),
        (PLAIN[:42] + np.array([400] * 3, "<i2").tobytes() + PLAIN[48:], VolumeError, "truncated"),
        (with_slope(PLAIN, 1e30), DataError, "far beyond those of a CT"),
        (with_slope(PLAIN, np.inf), VolumeError, "not finite"),
    ],
)
def test_scan_is_refused_by_its_header(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    kind: type[GtvrayError],
    what: str,
) -> None:
    read, reads = Source.read_voxels, []

    def recorded(self: Source, *arguments: Any) -> NDArray[Any]:
        reads.append(arguments)
        return read(self, *arguments)

    monkeypatch.setattr(Source, "read_voxels", recorded)

    async def run() -> None:
        model = Model(AppArguments(bundle=bundle.folder, serving=ServingConfig(max_volume_mb=256)))
        with pytest.raises(kind, match=what) as refused:
            await model.predict(work_of(tmp_path, content), "r")
        assert refused.value.fields["found"]
        assert model._budget.held_bytes == 0

    asyncio.run(run())
    assert reads == []


def test_refusal_names_what_the_scan_becomes(bundle: Bundle, tmp_path: Path) -> None:
    async def run() -> TooLargeError:
        with pytest.raises(TooLargeError) as refused:
            await Model(AppArguments(bundle=bundle.folder)).predict(work_of(tmp_path, content), "r")
        return refused.value

    content = scan_of((110, 110, 110), 20.0)
    assert len(content) < 100_000
    fields = asyncio.run(run()).fields
    assert fields["expected"] == "at most 1.50 GB"
    assert (
        "110 x 110 x 110 int16 voxels of 20 x 20 x 20 mm, which become 734 x 734 x 734 of 3 x 3 x 3" in fields["found"]
    )


def test_cancelled_scan_leaves_no_file(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go = threading.Event(), threading.Event()
    finish = Model._finish

    def slowly(*arguments: Any) -> Any:
        began.set()
        assert go.wait(30)
        return finish(*arguments)

    monkeypatch.setattr(Model, "_finish", slowly)
    work = work_of(tmp_path, encode_nifti(make_scan((20, 20, 20)), compress=True))

    async def run() -> None:
        model = Model(AppArguments(bundle=bundle.folder))
        task = asyncio.ensure_future(model.predict(work, "r"))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done(), "memory is held until the thread has ended"
        work.remove()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model._budget.held_bytes == 0

    asyncio.run(run())
    assert [path.name for path in tmp_path.iterdir()] == [work.body.path.name]


def test_large_scans_are_prepared_at_a_lower_priority_than_small_ones(bundle: Bundle) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def in_a_worker() -> tuple[int, int]:
        # The niceness of Ray's workers.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        model = Model(AppArguments(bundle=bundle.folder))
        return model._small.submit(niceness).result(), model._large.submit(niceness).result()

    with ThreadPoolExecutor(1) as worker:
        small, large = worker.submit(in_a_worker).result()
    assert (small, large) == (15, 19)
