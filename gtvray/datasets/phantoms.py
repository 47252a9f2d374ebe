"""Head-and-neck CT phantoms with a gross tumour volume, for demonstrations and tests without patient data.

Shapes are evaluated at the voxel centres in the head frame (mm, RAS, origin in the nasopharynx), without resampling.
Published results depend on these voxels: any change to them requires a new `PHANTOM_VERSION`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.geometry import Volume

PHANTOM_VERSION = 1

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]
Window = tuple[slice, slice, slice]

_ORIENTATION_SHARES = {"LPI": 0.3, "RAS": 0.2, "LAS": 0.2, "LPS": 0.2, "PSR": 0.1}
_SOFT_HU = 40.0
# Ranges from which the value of a tissue is drawn for each case.
_SOFT_TISSUES_HU = {"fat": (-110, -85), "parotid": (-15, 25), "fluid": (5, 12), "muscle": (48, 62), "vessel": (70, 125)}
_OTHER_TISSUES_HU = {"air": (-999, -990), "spongy": (280, 450), "bone": (700, 1100), "tooth": (1700, 2400)}


@dataclass(frozen=True)
class _Shape:
    """An ellipsoid, or an upright elliptic cylinder, of one tissue; a paired shape is mirrored to the other side."""

    tissue: str
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    paired: bool = False
    upright: bool = False


# Painted in this order, later over earlier.
_SOFT_SHAPES = (
    _Shape("fat", (22, 6, -12), (5, 9, 18), paired=True),  # parapharyngeal
    _Shape("fat", (45, 45, -15), (10, 12, 12), paired=True),  # buccal
    _Shape("muscle", (32, 18, 2), (12, 14, 10), paired=True),  # lateral pterygoid
    _Shape("muscle", (34, 10, -28), (8, 12, 22), paired=True),  # medial pterygoid
    _Shape("muscle", (57, 18, -28), (7, 16, 28), paired=True),  # masseter
    _Shape("muscle", (62, 25, 30), (6, 26, 28), paired=True),  # temporalis
    _Shape("muscle", (9, -13, -40), (7, 5, 40), paired=True),  # longus colli and capitis
    _Shape("muscle", (20, -72, -60), (20, 20, 70), paired=True),  # trapezius, splenius
    _Shape("muscle", (0, 34, -36), (24, 30, 17)),  # tongue
    _Shape("muscle", (43, -14, -72), (9, 11, 70), paired=True),  # sternocleidomastoid
    _Shape("vessel", (32, -21, -70), (6, 5, 78), paired=True, upright=True),  # jugular vein
    _Shape("vessel", (25, -14, -70), (4, 4, 80), paired=True, upright=True),  # carotid artery
    _Shape("muscle", (15, -2, -28), (6, 7, 12), paired=True),  # tonsil
    _Shape("muscle", (0, -9, 8), (11, 4, 7)),  # adenoid
    _Shape("parotid", (58, -8, -18), (11, 15, 22), paired=True),
    _Shape("muscle", (32, 18, -62), (9, 14, 10), paired=True),  # submandibular
)
_BONE_SHAPES = (
    _Shape("bone", (26, 48, 0), (17, 20, 20), paired=True),  # maxilla, hollowed by its sinus
    _Shape("bone", (31, 62, 28), (21, 21, 20), paired=True),  # orbital walls
    _Shape("bone", (58, 42, 8), (6, 22, 5), paired=True),  # zygoma
    _Shape("bone", (15, 14, -4), (2.5, 8, 14), paired=True),  # pterygoid plates
    _Shape("bone", (0, 42, -17), (22, 28, 3)),  # hard palate
    _Shape("spongy", (0, -14, 16), (14, 7, 13)),  # clivus
    _Shape("bone", (0, 18, 24), (15, 13, 12)),  # sphenoid
    _Shape("bone", (38, -28, 12), (22, 10, 9), paired=True),  # petrous
    _Shape("spongy", (54, -38, 0), (10, 13, 15), paired=True),  # mastoid
    _Shape("bone", (47, 10, -26), (5, 14, 30), paired=True),  # mandibular ramus
)
_CAVITY_SHAPES = (
    _Shape("fat", (31, 62, 28), (18, 20, 17), paired=True),  # orbit
    _Shape("fluid", (31, 66, 28), (12, 12, 12), paired=True),  # globe
    _Shape("air", (0, 18, 24), (11, 9, 8)),  # sphenoid sinus
    _Shape("air", (0, 42, 4), (13, 34, 20)),  # nasal cavity
    _Shape("muscle", (8, 40, -2), (4, 24, 8), paired=True),  # turbinates
    _Shape("muscle", (0, 45, 4), (1.8, 30, 22)),  # septum
    _Shape("air", (0, 2, 0), (13, 9, 13)),  # nasopharynx
    _Shape("air", (0, -3, -32), (11, 8, 24)),  # oropharynx
    _Shape("air", (0, 0, -70), (9, 7, 22)),  # hypopharynx
    _Shape("air", (0, 5, -140), (9, 9, 60), upright=True),  # larynx, trachea
    _Shape("air", (62, -22, 6), (14, 3.5, 3.5), paired=True),  # ear canal
    _Shape("air", (54, -38, 0), (6, 9, 9), paired=True),  # mastoid cells
    _Shape("fluid", (10, -5, 72), (6, 28, 9), paired=True),  # lateral ventricle
)
# Positions from the centre of the vertebral body.
_VERTEBRA_SHAPES = (
    _Shape("vessel", (0, 0, -9), (13, 9, 4), upright=True),  # disc, as bright
    _Shape("spongy", (0, -18, 0), (15, 13, 5.5), upright=True),  # arch
    _Shape("spongy", (0, -38, -5), (4, 15, 4)),  # spinous process
    _Shape("bone", (21, -8, 0), (10, 6, 5), paired=True),  # transverse process
    _Shape("bone", (0, 0, 0), (13.5, 9, 7), upright=True),
    _Shape("spongy", (0, 0, 0), (10.5, 6.5, 4.5), upright=True),
    _Shape("fluid", (0, -18, 0), (10.5, 8.5, 9.5), upright=True),  # canal
    _Shape("muscle", (0, -18, 0), (6, 4.5, 10), upright=True),  # cord
)
# Tumour sites: share, centre, half range of the centre on each axis; the side is drawn separately.
_SITES = (
    (0.25, (10, -13, -2), (8, 4, 12)),  # posterior wall
    (0.35, (25, -2, -4), (7, 9, 12)),  # lateral wall, parapharyngeal space
    (0.2, (10, 3, 17), (9, 8, 5)),  # roof, skull base
    (0.2, (13, -6, -36), (9, 8, 9)),  # towards the oropharynx
)


@dataclass(frozen=True)
class _Plan:
    """Random parameters of a case: grid, pose and tumour; in the head frame unless stated otherwise."""

    shape: tuple[int, int, int]
    affine: Vector  # in RAS axis order; reoriented last
    orientation: str
    head_to_ijk: Vector  # (3, 4)
    couch_mm: float  # couch top on the scanner's y axis, from the volume's centre
    tumour_mm: Vector
    tumour_ml: float


def make_phantom(index: int, seed: int) -> tuple[Volume, Volume]:
    """Make a case: CT (int16, HU) and its tumour mask (uint8, 0 or 1) on the same grid.

    A case depends only on `index` and `seed` (both >= 0).
    """
    streams = np.random.default_rng([PHANTOM_VERSION, seed, index]).spawn(4)
    plan = _draw_plan(streams[0])
    head = _Head(plan, streams[1])
    head.paint_all()
    label = _grow_tumour(head, plan, streams[2])
    arrays = _scan(head.hu, streams[3]), label.astype(np.uint8)
    ct, truth = (Volume(array, plan.affine).reoriented(plan.orientation) for array in arrays)
    return ct, truth


def _draw_plan(rng: np.random.Generator) -> _Plan:
    pixel_mm, slice_mm = rng.uniform(2.3, 2.9), rng.uniform(3.0, 4.0)
    # In a smaller volume the head, or a tumour off the centre, would not fit.
    fewest_pixels, fewest_slices = max(96, math.ceil(250 / pixel_mm)), max(40, math.ceil(150 / slice_mm))
    columns, rows = (int(n) for n in rng.integers(fewest_pixels, 121, size=2))
    shape = (columns, rows, int(rng.integers(fewest_slices, 61)))
    tilt = _rotation(rng.uniform(-4.5, 4.5, 3)) if rng.random() < 0.4 else np.eye(3)
    grid = tilt @ np.diag([pixel_mm, pixel_mm, slice_mm])
    scale = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
    pose = _rotation(np.clip(rng.normal(0, 5, 3), -10, 10)) @ np.diag(scale)
    tumour_mm = _draw_site(rng)
    tumour_ml = math.exp(rng.uniform(math.log(6), math.log(80)))
    offset = rng.uniform((-28, -18, -40), (28, 42, 40))
    # The tumour must not reach the first or last slices: the head is shifted along z until it fits.
    reach_mm = shape[2] * slice_mm / 2 - 1.5 * math.cbrt(tumour_ml * 1000 * 0.75 / math.pi) - 12
    z_mm = (pose @ tumour_mm)[2]
    offset[2] = np.clip(z_mm + offset[2], -reach_mm, reach_mm) - z_mm
    centre_ijk = (np.array(shape) - 1) / 2
    origin_mm = rng.uniform(-150, 150, 3) - grid @ centre_ijk
    return _Plan(
        shape=shape,
        affine=np.vstack([np.column_stack([grid, origin_mm]), (0, 0, 0, 1)]),
        orientation=str(rng.choice(list(_ORIENTATION_SHARES), p=list(_ORIENTATION_SHARES.values()))),
        head_to_ijk=np.column_stack([np.linalg.inv(grid) @ pose, np.linalg.inv(grid) @ offset + centre_ijk]),
        couch_mm=float(offset[1] - 122 * scale[1]),
        tumour_mm=tumour_mm,
        tumour_ml=tumour_ml,
    )


def _draw_site(rng: np.random.Generator) -> Vector:
    _, centre, half_range = _SITES[rng.choice(len(_SITES), p=[share for share, _, _ in _SITES])]
    position = np.array(centre) + np.array(half_range) * rng.uniform(-1, 1, 3)
    position[0] *= rng.choice((-1, 1))
    return position


def _rotation(angles_deg: Vector) -> Vector:
    """Return the matrix of rotations about x, then y, then z."""
    matrix = np.eye(3)
    for (a, b), angle in zip(((1, 2), (2, 0), (0, 1)), np.radians(angles_deg), strict=True):
        turn = np.eye(3)
        turn[[a, b, a, b], [a, b, b, a]] = math.cos(angle), math.cos(angle), -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


class _Head:
    """The noise-free CT under construction: `hu`, head-frame coordinates and depth below the skin (mm), per voxel."""

    def __init__(self, plan: _Plan, rng: np.random.Generator) -> None:
        self.plan, self.rng = plan, rng
        linear, offset = np.linalg.inv(plan.head_to_ijk[:, :3]), plan.head_to_ijk[:, 3]
        x, self.y, self.z = (_linear_field(plan.shape, row, float(-row @ offset)) for row in linear)
        lopsided = rng.uniform(-0.04, 0.04)
        self.x = np.where(x > 0, x * np.float32(1 + lopsided), x * np.float32(1 - lopsided))
        self.texture = _smooth_field(rng, plan.shape, (4.0, 4.0, 3.0))
        self.depth_mm = self._skin_depth()
        self.hu: Floats = np.full(plan.shape, -1000, dtype=np.float32)
        ranges = _SOFT_TISSUES_HU | _OTHER_TISSUES_HU
        self.tissue_hu = {tissue: float(rng.uniform(*bounds)) for tissue, bounds in ranges.items()}

    def paint_all(self) -> None:
        """Paint everything except the tumour."""
        self._paint_couch()
        self._paint_body()
        self._paint_shapes(_SOFT_SHAPES)
        self._paint_nodes()
        self._paint_shapes(_BONE_SHAPES)
        self._paint_vault()
        self._paint_spine()
        self._paint_jaws()
        self._paint_shapes(_CAVITY_SHAPES)
        self._paint_sinuses()

    def window(self, centre_mm: Vector, reach_mm: float) -> Window:
        """Return the index ranges that contain a ball in the head frame, clipped to the grid."""
        linear = self.plan.head_to_ijk[:, :3]
        middle = linear @ centre_mm + self.plan.head_to_ijk[:, 3]
        # The matrix excludes the asymmetry of the x axis, so a centre may be 4 % further out than computed.
        half = np.linalg.norm(linear, axis=1) * (1.05 * reach_mm + 0.05 * abs(centre_mm[0]) + 1)
        low = np.clip(np.floor(middle - half), 0, self.plan.shape).astype(int)
        high = np.clip(np.ceil(middle + half) + 1, low, self.plan.shape).astype(int)
        i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return i, j, k

    def _rho(self, window: Window | EllipsisType, centre: Vector, radii: Vector, axes: str = "xyz") -> Floats:
        """Compute the ellipsoidal radius over the named axes: 1 on the surface."""
        fields = {"x": self.x, "y": self.y, "z": self.z}
        total = np.zeros(self.x[window].shape, dtype=np.float32)
        for axis, c, r in zip("xyz", centre, radii, strict=True):
            if axis in axes:
                total += ((fields[axis][window] - np.float32(c)) / np.float32(r)) ** 2
        return np.asarray(np.sqrt(total), dtype=np.float32)

    def _skin_depth(self) -> Floats:
        """Compute the approximate depth below the smooth union of vault, face, jaw, nose, ears and neck.

        Returns:
            mm, negative outside.
        """
        parts = (
            ((0, -18, 55), (79, 101, 76)),
            ((0, 20, -8), (68, 74, 68)),
            ((0, 34, -48), (60, 52, 31)),
            ((0, 90, 0), (11, 16, 20)),
            ((72, -22, 14), (9, 14, 24)),
            ((-72, -22, 14), (9, 14, 24)),
        )
        # The neck starts at z = -15 and widens towards the shoulders.
        widening = 1 + np.clip(-125 - self.z, 0, 60) / np.float32(28)
        neck = np.sqrt((self.x / (58 * widening)) ** 2 + ((self.y + 35) / (57 * np.sqrt(widening))) ** 2)
        neck_mm = np.minimum((1 - neck) * 57, -15 - self.z)
        total = np.exp(np.clip(neck_mm / 5, -30, 30))
        for centre, radii in parts:
            depth = (1 - self._rho(..., np.array(centre), np.array(radii))) * np.float32(min(radii))
            total += np.exp(np.clip(depth / 5, -30, 30))
        return np.asarray(5 * np.log(total), dtype=np.float32)

    def _paint(self, tissue_hu: float, centre: Vector, radii: Vector, upright: bool = False) -> None:
        """Fill an ellipsoid where it is at least 3 mm below the skin."""
        window = self.window(centre, float(np.linalg.norm(radii) if upright else max(radii)))
        inside = self._rho(window, centre, radii, "xy" if upright else "xyz") < 1
        if upright:
            inside &= np.abs(self.z[window] - np.float32(centre[2])) < radii[2]
        self.hu[window][inside & (self.depth_mm[window] > 3)] = tissue_hu

    def _paint_shapes(self, shapes: tuple[_Shape, ...], shift_mm: tuple[float, float, float] = (0, 0, 0)) -> None:
        for shape in shapes:
            for side in (1, -1) if shape.paired else (1,):
                centre = np.array(shape.centre_mm) * (side, 1, 1) + shift_mm + self.rng.normal(0, 1.2, 3)
                radii = np.array(shape.radii_mm) * self.rng.uniform(0.9, 1.1, 3)
                self._paint(self.tissue_hu[shape.tissue], centre, radii, shape.upright)

    def _paint_couch(self) -> None:
        """Paint two thin shells with foam between them, fixed to the scanner rather than to the head."""
        row, shape = -self.plan.affine[1, :3], self.plan.shape
        below = _linear_field(shape, row, self.plan.couch_mm - float(row @ (np.array(shape) - 1) / 2))
        self.hu[(below > 0) & (below < 32)] = -930
        self.hu[((below > 0) & (below < 3.5)) | ((below > 29) & (below < 32.5))] = -250

    def _paint_body(self) -> None:
        """Paint skin, subcutaneous fat, and soft tissue with texture and strands of fat."""
        strands = _smooth_field(self.rng, self.plan.shape, (5.0, 5.0, 4.0))
        deep = _SOFT_HU + 4 * self.texture - 120 * np.clip(strands - np.float32(1.5), 0, 1)
        where = [self.depth_mm <= 0, self.depth_mm < 2.5, self.depth_mm < 2.5 + self.rng.uniform(2, 6)]
        self.hu = np.select(where, [self.hu, 15, self.tissue_hu["fat"]], deep).astype(np.float32)

    def _paint_nodes(self) -> None:
        """Paint lymph nodes that are as bright as a tumour, as distractors."""
        for _ in range(self.rng.integers(2, 8)):
            centre = self.rng.uniform((30, -28, -105), (50, 14, -28)) * (self.rng.choice((-1, 1)), 1, 1)
            self._paint(_SOFT_HU + self.rng.uniform(15, 35), centre, self.rng.uniform(4, 10, 3))

    def _paint_vault(self) -> None:
        """Paint skull vault and posterior fossa, two tables with diploe between them, and the brain inside."""
        y, sheared_z = self.y + 18, self.z - 68 - np.float32(0.25) * (self.y + 18)
        vault = np.sqrt((self.x / 71) ** 2 + (y / 92) ** 2 + (sheared_z / 56) ** 2)
        fossa = self._rho(..., np.array((0, -58, 22)), np.array((52, 42, 36)))
        inner_mm = np.maximum((1 - vault) * 62, (1 - fossa) * 40)
        inner_mm[self.depth_mm < 3] = -1
        wall_mm = self.rng.uniform(5, 7.5)
        self.hu[(inner_mm > 0) & (inner_mm < wall_mm)] = self.tissue_hu["bone"]
        self.hu[(inner_mm > 0.35 * wall_mm) & (inner_mm < 0.65 * wall_mm)] = self.tissue_hu["spongy"] + 100
        self.brain: Mask = inner_mm >= wall_mm
        self.hu[self.brain] = (35 + 3 * self.texture)[self.brain]
        self.hu[self.brain & (inner_mm < wall_mm + 2.5)] = 18  # cerebrospinal fluid

    def _paint_spine(self) -> None:
        """Paint seven cervical and two thoracic vertebrae along a curve."""
        bow_mm = self.rng.uniform(-2, 9)
        for level in range(9):
            self._paint_shapes(_VERTEBRA_SHAPES, (0, -26 + bow_mm * math.sin(math.pi * level / 8), -9 - 18 * level))

    def _paint_jaws(self) -> None:
        """Paint mandible with marrow, upper jaw and teeth, some missing, as horseshoes open to the back."""
        for tissue, radii, half_width_mm, bottom_mm, top_mm, comb in (
            ("bone", (48, 54), 5.0, -64, -40, -1.0),
            ("spongy", (48, 54), 2.0, -60, -45, -1.0),
            ("spongy", (31, 46), 5.0, -27, -17, -1.0),
            ("tooth", (31, 46), 3.5, -42, -23, float(self.rng.uniform(-0.6, 0.4))),
        ):
            centre = np.array((0, 22, (bottom_mm + top_mm) / 2))
            window = self.window(centre, max(radii) + 17)
            x, y, z = self.x[window], self.y[window] - 22, self.z[window]
            ring = np.abs(self._rho(window, centre, np.array((*radii, 1)), "xy") - 1) * min(radii) < half_width_mm
            arch = ring & (y > 45 - radii[0]) & (z > bottom_mm) & (z < top_mm) & (self.depth_mm[window] > 3)
            self.hu[window][arch & (np.cos(22 * np.arctan2(x, y)) >= comb)] = self.tissue_hu[tissue]

    def _paint_sinuses(self) -> None:
        """Paint maxillary sinuses, sometimes filled or with a swollen floor."""
        for side in (1, -1):
            centre = np.array((side * 26, 48, 0))
            filled, swollen = self.rng.random(2) < (0.15, 0.4)
            self._paint(25 if filled else -995, centre, np.array((14, 17, 17)) * self.rng.uniform(0.85, 1.05, 3))
            if swollen:
                self._paint(30, centre - (0, 0, 12), np.array((11, 12, 7)))


def _grow_tumour(head: _Head, plan: _Plan, rng: np.random.Generator) -> Mask:
    """Paint the tumour into `head` and return its mask, one connected component without holes."""
    radius_mm = math.cbrt(plan.tumour_ml * 1000 * 0.75 / math.pi)
    window = head.window(plan.tumour_mm, 2.2 * radius_mm + 10)
    effort = _lobes(head, window, plan.tumour_mm, radius_mm, rng)
    effort += 0.16 * _smooth_field(rng, plan.shape, (4.0, 4.0, 3.0))[window]
    hu = head.hu[window]
    # Growth follows soft tissue: bone, airway, brain and the space behind the prevertebral fascia add cost.
    effort += 0.7 * (hu > 200) + 0.5 * (hu < -300) + head.brain[window]
    effort += 0.035 * np.clip(-20 - head.y[window], 0, None)
    effort[head.depth_mm[window] < 7] = np.inf
    wanted = round(plan.tumour_ml * 1000 / abs(float(np.linalg.det(plan.affine[:3, :3]))))
    grown = _solid(effort <= np.partition(effort, wanted, axis=None)[wanted])
    hu[grown] = (_SOFT_HU + rng.uniform(20, 35) + 4 * head.texture[window])[grown]
    mask: Mask = np.zeros(plan.shape, dtype=bool)
    mask[window] = grown
    return mask


def _lobes(head: _Head, window: Window, centre: Vector, radius_mm: float, rng: np.random.Generator) -> Floats:
    """Compute the smooth union of a main ellipsoid and a few lobes around it: about 1 on the surface."""
    total = np.zeros(head.x[window].shape, dtype=np.float32)
    fields = [field[window] for field in (head.x, head.y, head.z)]
    for lobe in range(rng.integers(3, 6)):
        direction = rng.normal(size=3)
        away = 0 if lobe == 0 else rng.uniform(0.4, 0.9) * radius_mm
        radii = radius_mm * rng.uniform(0.75, 1.15, 3) * (1 if lobe == 0 else rng.uniform(0.45, 0.8))
        axes = _rotation(rng.uniform(-90, 90, 3)) / radii
        start = centre + away * direction / np.linalg.norm(direction)
        squared = np.zeros_like(total)
        for axis in axes.T:
            # Not `@`: rounding in a BLAS product may depend on the number of threads.
            local = sum(f * np.float32(a) for f, a in zip(fields, axis, strict=True)) - np.float32(start @ axis)
            squared += local**2
        total += np.exp(-6 * np.sqrt(squared))
    return np.asarray(-np.log(total + np.float32(1e-30)) / 6, dtype=np.float32)


def _solid(mask: Mask) -> Mask:
    """Return the largest connected component with its holes filled."""
    components, _ = ndimage.label(mask)
    largest = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    outside, _ = ndimage.label(np.pad(~largest, 1, constant_values=True))
    return np.asarray(outside != outside[0, 0, 0], dtype=bool)[1:-1, 1:-1, 1:-1]


def _scan(hu: Floats, rng: np.random.Generator) -> NDArray[np.int16]:
    """Blur with the scanner's point spread, add slightly correlated noise, and clip to the range of a CT."""
    blurred = ndimage.gaussian_filter(hu, (0.5, 0.5, 0.35), truncate=3)
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.6, 0.6, 0.3), truncate=3)
    noise *= np.float32(rng.uniform(12, 20)) / noise.std()
    return np.asarray(np.clip(np.rint(blurred + noise), -1024, 3071), dtype=np.int16)


def _linear_field(shape: tuple[int, int, int], row: Vector, constant: float) -> Floats:
    """Compute `row @ ijk + constant` for every voxel."""
    i, j, k = (np.arange(n) * a for n, a in zip(shape, row, strict=True))
    return np.asarray((i[:, None, None] + j[:, None]) + (k + constant), dtype=np.float32)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], pitch: tuple[float, ...]) -> Floats:
    """Draw a random field of mean 0 and standard deviation 1: cubic B-splines on nodes `pitch` voxels apart."""
    nodes = [math.ceil((n - 1) / p) + 4 for n, p in zip(shape, pitch, strict=True)]
    field = rng.standard_normal(nodes, dtype=np.float32)
    for axis, (size, step) in enumerate(zip(shape, pitch, strict=True)):
        first, t = np.divmod(np.arange(size) / step, 1)
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        columns = np.array(weights, dtype=np.float32).reshape([4, *(-1 if n == axis else 1 for n in range(3))])
        field = sum(field.take(first.astype(int) + tap, axis) * column for tap, column in enumerate(columns))
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)
