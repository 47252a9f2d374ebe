"""Orthogonal slices of a scan with mask outlines in radiological display, and small pictures of them.

Only slices are drawn, never a surface: a picture that leaves the machine must not show a face.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gtvray.geometry import Box, Volume

WINDOW_HU = (-160.0, 240.0)
REFERENCE_COLOUR = "#20e040"
_BODY_ABOVE_HU = -500.0
_MARGIN_IJK = (3, 3, 3)
# Every third voxel bounds the body almost as well, 27 times faster; not larger than the margin.
_STEP = 3
# Views: name, (horizontal, vertical) array axes of an LPS volume, whether rows run upwards, letters at the left, right,
# top and bottom edge. Patient left is on the viewer's right; anterior and superior are at the top.
_VIEWS = (
    ("axial", (0, 1), False, "RLAP"),
    ("coronal", (0, 2), True, "RLSI"),
    ("sagittal", (1, 2), True, "APSI"),
)
_TILE_PX = 150
# WebP quality at which outlines show no ringing and three slices take about 10 kB.
_QUALITY = 70


@dataclass(frozen=True)
class Section:
    """A slice with the same slice of each mask.

    Attributes:
        name: axial, coronal or sagittal.
        hu: HU, (rows, columns).
        masks: one per given mask, of the same shape.
        rows_up: whether rows run upwards in display.
        letters: patient directions at the left, right, top and bottom edge.
        pixel_mm: height and width of a pixel.
    """

    name: str
    hu: NDArray[Any]
    masks: tuple[NDArray[np.bool_], ...]
    rows_up: bool
    letters: str
    pixel_mm: tuple[float, float]


def sections(image: Volume, masks: list[Volume]) -> list[Section]:
    """Extract the axial, coronal and sagittal slices through the first mask that is not empty, or the grid's centre.

    Args:
        image: CT in HU.
        masks: masks on the image's grid.
    """
    box = _shown_box(image, masks)
    shown = image.cropped(box).reoriented("LPS")
    cut = [mask.cropped(box).reoriented("LPS").array != 0 for mask in masks]
    centre = _middle(cut, shown.shape)
    views = []
    for name, (horizontal, vertical), rows_up, letters in _VIEWS:
        normal = 3 - horizontal - vertical
        hu, *outlined = (np.take(array, centre[normal], axis=normal).T for array in (shown.array, *cut))
        pixel_mm = shown.spacing_mm[vertical], shown.spacing_mm[horizontal]
        views.append(Section(name, hu, tuple(outlined), rows_up, letters, pixel_mm))
    return views


def tile(image: Volume, mask: Volume | None) -> bytes:
    """Draw the three slices side by side as a small WebP with the mask outlined, for a page of many cases."""
    parts = [_draw(section) for section in sections(image, [] if mask is None else [mask])]
    canvas = Image.new("RGB", (sum(part.width for part in parts) + 2 * (len(parts) - 1), _TILE_PX))
    left = 0
    for part in parts:
        canvas.paste(part, (left, (_TILE_PX - part.height) // 2))
        left += part.width + 2
    content = io.BytesIO()
    canvas.save(content, format="WEBP", quality=_QUALITY)
    return content.getvalue()


def _draw(section: Section) -> Image.Image:
    section = _trim(section)
    rows, columns = section.hu.shape
    height_mm, width_mm = rows * section.pixel_mm[0], columns * section.pixel_mm[1]
    scale = _TILE_PX / max(height_mm, width_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    low, high = WINDOW_HU
    grey = np.clip((section.hu.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(_oriented(grey, section)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    for mask in section.masks:
        soft = Image.fromarray(_oriented(mask.astype(np.uint8) * np.uint8(255), section))
        inside = np.asarray(soft.resize(size, Image.Resampling.BILINEAR)) >= 128
        outline = inside & ~_eroded(_eroded(inside))
        picture.paste(REFERENCE_COLOUR, mask=Image.fromarray(outline))
    draw = ImageDraw.Draw(picture)
    draw.text((2, size[1] / 2), section.letters[0], fill="yellow", anchor="lm")
    draw.text((size[0] / 2, 1), section.letters[2], fill="yellow", anchor="mt")
    return picture


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without the pixels at its border."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _trim(section: Section) -> Section:
    """Crop the air around the body in this slice: a neck is small in the bounding box of the shoulders."""
    foreground = np.logical_or.reduce([section.hu > _BODY_ABOVE_HU, *section.masks])
    box = Box.around(foreground[..., None])
    if box is None:
        return section
    rows, columns, _ = box.grown(_MARGIN_IJK, (*section.hu.shape, 1)).slices
    masks = tuple(mask[rows, columns] for mask in section.masks)
    return replace(section, hu=section.hu[rows, columns], masks=masks)


def _oriented(array: NDArray[np.uint8], section: Section) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array[::-1] if section.rows_up else array)


def _shown_box(image: Volume, masks: list[Volume]) -> Box:
    """Box around body and masks."""
    coarse = Box.around(np.asarray(image.array[::_STEP, ::_STEP, ::_STEP] > _BODY_ABOVE_HU))
    boxes = [box for box in (Box.around(mask.array != 0) for mask in masks) if box is not None]
    if coarse is not None:
        # The end may be two voxels short; the margin covers them.
        stop = [(n - 1) * _STEP + 1 for n in coarse.stop_ijk]
        i, j, k = (n * _STEP for n in coarse.start_ijk)
        boxes.append(Box((i, j, k), (stop[0], stop[1], stop[2])))
    if not boxes:
        return Box.whole(image.shape)
    start = np.min([box.start_ijk for box in boxes], axis=0)
    end = np.max([box.stop_ijk for box in boxes], axis=0)
    union = Box((int(start[0]), int(start[1]), int(start[2])), (int(end[0]), int(end[1]), int(end[2])))
    return union.grown(_MARGIN_IJK, image.shape)


def _middle(masks: list[NDArray[np.bool_]], shape: tuple[int, int, int]) -> list[int]:
    """Voxel index of the slices: medians of the first mask that is not empty along each axis, or the grid's centre."""
    for mask in masks:
        box = Box.around(mask)
        if box is not None:
            part = mask[box.slices]
            counts = [part.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            medians = [int(np.searchsorted(np.cumsum(count), count.sum() / 2)) for count in counts]
            return [start + median for start, median in zip(box.start_ijk, medians, strict=True)]
    return [size // 2 for size in shape]
