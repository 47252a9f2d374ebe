"""Published dataset cards: parsing, internal inconsistencies, and comparison with the files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gtvray.datasets.description.statistics import ROWS
from gtvray.datasets.layouts.structseg import WRAPPERS
from gtvray.errors import InputError
from gtvray.io import format_value

# Cards have four decimals, some truncated instead of rounded.
_SPACING_TOLERANCE_MM = 2e-4
# No CT scanner has a wider bore, let alone field of view.
_BORE_MM = 900.0
_NUMBER = r"-?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Card:
    """Values published in a dataset card.

    Attributes:
        cases: number of cases.
        formats: file format.
        spacing_mm, size: rows min, median and max.
        slices: number of 2-D slices.
        occurrences, percentage: cases with the structure.
        folder: top folder of the file structure.
        about: text that is searched for contradictions.
    """

    cases: int | None = None
    formats: str | None = None
    spacing_mm: dict[str, tuple[float, ...]] = field(default_factory=dict)
    size: dict[str, tuple[float, ...]] = field(default_factory=dict)
    slices: int | None = None
    occurrences: int | None = None
    percentage: float | None = None
    folder: str | None = None
    about: str = ""


# The card of StructSeg 2019 Task 2 in the OpenMedLab collection.
STRUCTSEG_2019_TASK2 = Card(
    cases=50,
    formats=".nii.gz",
    spacing_mm={"min": (0.9765, 0.9765, 3.0), "median": (1.1406, 1.1406, 3.0), "max": (1.1875, 1.875, 3.0)},
    size={"min": (512, 512, 100), "median": (512, 512, 124), "max": (512, 512, 152)},
    slices=6151,
    occurrences=50,
    percentage=100.0,
    folder="HaN_OAR",
    about="GTV of 60 patients, 50 for training and 10 for testing",
)


def parse_card(text: str) -> Card:
    """Parse a card in the format of the OpenMedLab collection.

    Raises:
        InputError: the text has neither a table of spacing and size nor a number of slices.
    """
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    by_name = {row[0].lower(): row[1:] for row in rows if len(row) > 1}
    extremes = {name: by_name[name] for name in ROWS if name in by_name and len(by_name[name]) >= 2}
    slices = re.search(r"number of 2-?d slices[^:\d]*:\s*([\d,]+)", text, re.IGNORECASE)
    if not extremes and slices is None:
        raise InputError(
            "not a dataset card in a known format",
            expected="rows min, median, max with spacing and size, or the number of 2D slices",
            do="name a card in the format of the OpenMedLab collection, or omit --card",
        )
    heading = next((row for row in rows if "Data Volume" in row), [])
    meta = dict(zip(heading, rows[rows.index(heading) + 2], strict=False)) if heading else {}
    folder = re.search(r"```\s*\n\s*([\w.-]+)/?\s*\n\s*[├│]", text)
    return Card(
        cases=_integer(meta.get("Data Volume")),
        formats=meta.get("File Format"),
        spacing_mm={name: _numbers(cells[0]) for name, cells in extremes.items()},
        size={name: _numbers(cells[1]) for name, cells in extremes.items()},
        slices=_integer(slices.group(1)) if slices else None,
        occurrences=_integer((by_name.get("occurrences") or [""])[0]),
        percentage=next(iter(_numbers((by_name.get("percentage") or [""])[0])), None),
        folder=folder.group(1) if folder else None,
        about=text,
    )


def known_card(statistics: dict[str, Any], structure: str, folder: str) -> Card | None:
    """The card of StructSeg 2019 Task 2 if structure, folder, number of cases and slice size match it."""
    fits = structure == "GTV" and statistics.get("readable") == STRUCTSEG_2019_TASK2.cases
    named = folder in {part for wrapper in WRAPPERS for part in wrapper.split("/")}
    size = statistics.get("size", {}).get("median", [])
    return STRUCTSEG_2019_TASK2 if fits and named and list(size[:2]) == [512, 512] else None


def compare(card: Card, statistics: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Compare every published value with the computed one: item, published, computed, agrees."""
    rows = [
        ("data volume", card.cases, statistics["cases"]),
        ("file format", card.formats, ", ".join(statistics.get("formats", {})) or None),
        ("number of 2-D slices", card.slices, statistics.get("slices")),
        ("occurrences", card.occurrences, statistics.get("with_mask")),
        ("percentage", card.percentage, statistics.get("percentage")),
        ("folder", card.folder, folder),
    ]
    for quantity in ("spacing_mm", "size"):
        published, computed = getattr(card, quantity), statistics.get(quantity, {})
        rows += [(f"{row} {quantity}", published.get(row), computed.get(row)) for row in ROWS]
    return [
        {
            "item": item,
            "published": _plain(published),
            "computed": _plain(computed),
            "agrees": _agrees(published, computed),
        }
        for item, published, computed in rows
        if published is not None
    ]


def suspected_errata(card: Card, comparison: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Suspected errors of the card: item, published, computed, why."""
    computed = {row["item"]: row["computed"] for row in comparison}
    # Another number of cases means other data; then only contradictions within the card count.
    same_data = computed.get("data volume") == card.cases
    errata = [
        {
            "item": row["item"],
            "published": format_value(row["published"]),
            "computed": format_value(row["computed"]),
            "why": "differs from the files",
        }
        for row in comparison
        if same_data and not row["agrees"]
    ]
    for item, published, why in inconsistencies(card):
        found = computed.get(item)
        errata.append({"item": item, "published": published, "computed": format_value(found), "why": why})
    return errata


def inconsistencies(card: Card) -> list[tuple[str, str, str]]:
    """Contradictions within a card: (item, published, why)."""
    found = []
    square = {row: _square(spacing) for row, spacing in card.spacing_mm.items()}
    for row, spacing in card.spacing_mm.items():
        if not square[row] and any(square.values()):
            others = " and ".join(other for other in square if square[other])
            why = f"the pixel is not square while those of {others} are: a digit may be missing"
            found.append((f"{row} spacing_mm", format_value(spacing), why))
        widths = [pixel * count for pixel, count in zip(spacing[:2], card.size.get(row, ())[:2], strict=False)]
        if widths and max(widths) > _BORE_MM:
            why = f"a field of view of {max(widths):.0f} mm is wider than a scanner's bore"
            found.append((f"{row} spacing_mm", format_value(spacing), why))
    found += _slice_count(card)
    patients = re.search(r"(\d+)\s+(?:[a-z]+\s+){0,2}patients", card.about)
    if patients and card.cases and int(patients.group(1)) != card.cases:
        why = f"the text counts {patients.group(1)} patients; the table agrees if it omits an unpublished test set"
        found.append(("data volume", str(card.cases), why))
    if card.folder and "OAR" in card.folder and "GTV" in card.about:
        found.append(("folder", card.folder, "named for organs at risk while the text names the GTV"))
    if card.cases and card.occurrences is not None and card.percentage is not None:
        expected = 100 * card.occurrences / card.cases
        if abs(expected - card.percentage) > 0.5:
            why = f"{card.occurrences} of {card.cases} is {expected:.1f} %"
            found.append(("percentage", format_value(card.percentage), why))
    return found


def _slice_count(card: Card) -> list[tuple[str, str, str]]:
    """Check the total number of slices against the number of cases and the min, median and max of their slices."""
    if not (card.slices and card.cases and set(card.size) == set(ROWS)):
        return []
    low, median, high = (card.size[row][2] for row in ROWS)
    # The lower half of the cases has between min and median slices each, the upper half between median and max.
    half = card.cases // 2
    fewest = half * low + (card.cases - half) * median
    most = (card.cases - half) * median + half * high
    if fewest <= card.slices <= most:
        return []
    why = f"{card.cases} cases of {low:g} to {high:g} slices with a median of {median:g} have {fewest:g} to {most:g}"
    return [("number of 2-D slices", str(card.slices), why)]


def _square(spacing: tuple[float, ...]) -> bool:
    return abs(spacing[0] - spacing[1]) <= _SPACING_TOLERANCE_MM


def _agrees(published: Any, computed: Any) -> bool:
    if isinstance(published, tuple):
        pairs = zip(published, computed or (), strict=False)
        return len(published) == len(computed or ()) and all(abs(a - b) <= _SPACING_TOLERANCE_MM for a, b in pairs)
    if isinstance(published, float):
        return computed is not None and abs(published - computed) < 0.5
    return bool(published == computed)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _numbers(cell: str) -> tuple[float, ...]:
    return tuple(float(number) for number in re.findall(_NUMBER, cell))


def _integer(cell: str | None) -> int | None:
    digits = re.sub(r"[^\d]", "", cell or "")
    return int(digits) if digits else None
