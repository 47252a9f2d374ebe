"""The cost of a scan from its header: voxels, patches, and an upper bound of its memory."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gtvray.config import InferenceConfig
from gtvray.errors import DataError, TooLargeError, VolumeError
from gtvray.geometry import Volume
from gtvray.inference import Predictor, estimate_cost
from gtvray.io import VolumeHeader, encode_nifti, encode_nrrd, read_open_header, read_open_volume
from gtvray.models import Bundle

from ..bundles import random_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("cost") / "bundle", inference=InferenceConfig(threshold=0.3))


def filled(shape: tuple[int, int, int], spacing_mm: float, dtype: type = np.int16) -> Volume:
    """A body that fills its scan, with a border of air."""
    array = np.full(shape, -1000, dtype)
    array[1:-1, 1:-1, 1:-1] = 40
    return Volume(array, np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))


def header_of(volume: Volume) -> VolumeHeader:
    return read_open_header(io.BytesIO(encode_nifti(volume, compress=True)), "test")


@pytest.mark.parametrize("encode", [lambda v: encode_nifti(v, compress=True), encode_nrrd])
def test_header_is_read_without_the_voxels(encode: object) -> None:
    volume = filled((30, 20, 10), 3.0, np.float32)
    content = encode(volume)  # type: ignore[operator]
    header = read_open_header(io.BytesIO(content), "test")
    assert header.shape == (30, 20, 10)
    assert header.dtype == np.float32
    assert np.allclose(header.affine, volume.affine)
    with pytest.raises(TooLargeError, match="volume is too large"):
        read_open_header(io.BytesIO(content), "test", 23_999)
    # The voxels are damaged, which only reading them shows.
    assert read_open_header(io.BytesIO(content[:-20]), "test").shape == (30, 20, 10)


def test_header_of_more_voxels_than_the_file_can_hold_is_refused() -> None:
    content = bytearray(encode_nifti(filled((30, 20, 10), 3.0), compress=False))
    content[42:48] = np.array([10_000, 10_000, 20], "<i2").tobytes()
    with pytest.raises(VolumeError, match="truncated"):
        read_open_header(io.BytesIO(bytes(content)), "test")


@pytest.mark.parametrize("mode", ["body", "exhaustive", "localised"])
@pytest.mark.parametrize(("shape", "spacing_mm"), [((20, 20, 20), 4.0), ((64, 50, 40), 3.0), ((12, 12, 12), 20.0)])
def test_patches_are_at_most_those_estimated(
    bundle: Bundle, mode: str, shape: tuple[int, int, int], spacing_mm: float
) -> None:
    with_mode = replace(bundle, inference=bundle.inference.model_copy(update={"mode": mode}))
    scan = filled(shape, spacing_mm)
    cost = estimate_cost(header_of(scan), with_mode)
    request = Predictor(with_mode, threads=1).begin(scan)
    assert cost.source_voxels == np.prod(shape)
    assert cost.prepared_voxels >= request.prepared.hu.array.size * 0.9
    assert request.patches <= cost.patches
    if mode == "exhaustive":
        assert cost.patches <= 3.4 * request.patches + 8


def test_coarse_scan_costs_what_it_becomes(bundle: Bundle) -> None:
    """110 x 110 x 110 voxels of 20 mm compress to kilobytes and become 166 million voxels of 4 mm."""
    scan = filled((110, 110, 110), 20.0)
    cost = estimate_cost(header_of(scan), bundle)
    assert cost.prepared_ijk == (550, 550, 550)
    assert cost.peak_bytes > 2e9


def peak_bytes(bundle: Bundle, content: bytes) -> int:
    """Memory that a process takes for a scan, measured in a child process."""
    read, write = os.pipe()
    predictor = Predictor(bundle, threads=1)
    predictor.warm()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        scan = read_open_volume(io.BytesIO(content), "test")
        request = predictor.begin(scan, mask_only=True)
        del scan
        while request.remaining:
            patch = request.take()
            # Everything is marked as tumour, without running a network.
            request.put(patch.number, np.full(patch.channels.shape[1:], 5, np.float32))
        encode_nifti(request.mask(), compress=True)
        os.write(write, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "dtype", "mode"),
    [
        ((20, 20, 20), 4.0, np.int16, "body"),
        ((36, 36, 36), 20.0, np.int16, "body"),
        pytest.param((36, 36, 36), 20.0, np.int16, "localised", marks=pytest.mark.slow),
        ((200, 200, 100), 1.5, np.float64, "exhaustive"),
    ],
)
def test_memory_stays_below_the_estimate(
    bundle: Bundle, shape: tuple[int, int, int], spacing_mm: float, dtype: type, mode: str
) -> None:
    bundle = replace(bundle, inference=bundle.inference.model_copy(update={"mode": mode}))
    content = encode_nifti(filled(shape, spacing_mm, dtype), compress=True)
    estimate = estimate_cost(read_open_header(io.BytesIO(content), "test"), bundle).peak_bytes
    measured = peak_bytes(bundle, content)
    assert measured < estimate
    assert estimate < 200e6 + 4 * measured, "the estimate is not far above the measured value"


def test_values_far_beyond_those_of_a_ct_are_refused(bundle: Bundle) -> None:
    content = bytearray(encode_nifti(filled((20, 20, 20), 4.0), compress=False))
    content[112:116] = np.float32(1e30).tobytes()
    scan = read_open_volume(io.BytesIO(bytes(content)), "test")
    with pytest.raises(DataError, match="far beyond those of a CT") as refused:
        Predictor(bundle, threads=1).predict(scan)
    assert "scl_slope" in refused.value.fields["do"]
