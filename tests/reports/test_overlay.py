"""Overlays show the masks at their positions, in radiological display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gtvray.errors import GeometryError
from gtvray.geometry import Volume
from gtvray.reports import render_overlay
from gtvray.reports.overlay import _overlay_figure


def phantom() -> tuple[Volume, Volume]:
    """A water body in air with a bone rod at the patient's left, and a mask inside it; axes R, A, S."""
    hu = np.full((60, 50, 30), -1000, dtype=np.int16)
    hu[8:52, 8:42] = 0
    hu[12:16, 20:24] = 900
    mask = np.zeros(hu.shape, dtype=np.uint8)
    mask[30:42, 20:34, 10:22] = 1
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    return Volume(hu, affine), Volume(mask, affine)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def coloured(rgb: np.ndarray, channel: int) -> int:
    others = [other for other in range(3) if other != channel]
    return int(np.count_nonzero((rgb[..., channel] > 180) & (rgb[..., others] < 110).all(axis=-1)))


def test_overlay_is_a_png_with_both_outlines(tmp_path: Path) -> None:
    image, mask = phantom()
    shifted = mask.with_array(np.roll(mask.array, 4, axis=0))
    path = tmp_path / "overlay.png"
    render_overlay(path, image, mask, shifted, "case")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.png"]
    rgb = pixels(path)
    assert rgb.shape == (480, 1200, 3)
    assert coloured(rgb, 1) > 200
    assert coloured(rgb, 0) > 200


def test_overlay_has_outlines_of_the_given_masks_only(tmp_path: Path) -> None:
    image, mask = phantom()
    render_overlay(tmp_path / "reference.png", image, mask, None, "case")
    render_overlay(tmp_path / "none.png", image, None, None, "case")
    assert coloured(pixels(tmp_path / "reference.png"), 0) == 0
    assert coloured(pixels(tmp_path / "none.png"), 1) == 0


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_patient_left_is_on_the_viewers_right(tmp_path: Path, codes: str) -> None:
    image, _ = phantom()
    # The rod is at the low end of an axis that runs to the right: at the patient's left, slightly posterior.
    render_overlay(tmp_path / "a.png", image.reoriented(codes), None, None, "")
    axial = pixels(tmp_path / "a.png")[:, :400]
    body = np.argwhere((axial.max(axis=-1) > 80) & (axial.max(axis=-1) < 130))
    white = np.argwhere(axial.min(axis=-1) > 240)
    rod = np.median(white[white[:, 0] > 100], axis=0)
    assert rod[1] > body[:, 1].mean() + 40
    assert rod[0] > body[:, 0].mean()


def test_letters_are_at_the_edges_they_name() -> None:
    figure = _overlay_figure(*phantom(), None, "")
    edges = {axes.get_title(): {text.get_text(): text.get_position() for text in axes.texts} for axes in figure.axes}
    left, right, top, bottom = (0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)
    assert edges == {
        "axial": {"R": left, "L": right, "A": top, "P": bottom},
        "coronal": {"R": left, "L": right, "S": top, "I": bottom},
        "sagittal": {"A": left, "P": right, "S": top, "I": bottom},
    }
    # Rows run towards posterior in the axial view, towards superior in the others.
    rows_run_up = {axes.get_title(): axes.get_ylim()[0] < axes.get_ylim()[1] for axes in figure.axes}
    assert rows_run_up == {"axial": False, "coronal": True, "sagittal": True}


def test_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    image, mask = phantom()
    moved = Volume(mask.array, np.diag([2.0, 2.0, 2.5, 1.0]))
    with pytest.raises(GeometryError, match="prediction"):
        render_overlay(tmp_path / "a.png", image, mask, moved, "")
    assert not list(tmp_path.iterdir())


def test_overlay_of_a_full_and_an_empty_mask(tmp_path: Path) -> None:
    image, mask = phantom()
    full, empty = (mask.with_array(np.full(mask.shape, value, dtype=np.uint8)) for value in (1, 0))
    render_overlay(tmp_path / "a.png", image, full, empty, "")
    assert coloured(pixels(tmp_path / "a.png"), 1) > 200


def test_field_of_view_is_a_square_around_the_masks() -> None:
    image, mask = phantom()
    figure = _overlay_figure(image, mask, None, "", field_mm=40.0)
    for axes, pixel_mm in zip(figure.axes, ((2.0, 2.0), (3.0, 2.0), (3.0, 2.0)), strict=True):
        extents = [abs(np.diff(limits)[0]) for limits in (axes.get_ylim(), axes.get_xlim())]
        assert np.multiply(extents, pixel_mm) == pytest.approx([40.0, 40.0])
        # The middle of the mask is the middle of the field, in voxels of the shown box.
        outline = axes.collections[0].get_paths()[0].get_extents()
        assert np.mean(axes.get_xlim()) == pytest.approx((outline.x0 + outline.x1) / 2)
        assert np.mean(axes.get_ylim()) == pytest.approx((outline.y0 + outline.y1) / 2)
    rows_run_up = {axes.get_title(): axes.get_ylim()[0] < axes.get_ylim()[1] for axes in figure.axes}
    assert rows_run_up == {"axial": False, "coronal": True, "sagittal": True}


def test_field_of_view_without_masks_is_around_the_grid_s_centre(tmp_path: Path) -> None:
    image, _ = phantom()
    render_overlay(tmp_path / "a.png", image, None, None, "", field_mm=60.0)
    assert pixels(tmp_path / "a.png").shape == (480, 1200, 3)
