"""Tables of a dataset description, and its Markdown form: first the tables of a dataset card, then further ones."""

from __future__ import annotations

from typing import Any

from gtvray import NOTICE
from gtvray.datasets.description.describe import ROWS_NOTE, Description, file_tree
from gtvray.datasets.description.statistics import ROWS
from gtvray.io import Table

RESOLUTION, INTENSITIES = "Resolution", "Intensities (HU)"


def markdown(description: Description) -> str:
    """A description as Markdown, without pictures."""
    parts = [f"# {description.name}", f"{description.dataset.title}. {NOTICE}"]
    for title, table in tables(description).items():
        parts += [f"## {title}", table.markdown()]
        if title == RESOLUTION:
            parts.append(ROWS_NOTE)
    parts += ["## File structure", f"```text\n{file_tree(description.dataset, description.name)}\n```"]
    return "\n\n".join(parts) + "\n"


def tables(description: Description) -> dict[str, Table]:
    """Every table by its title."""
    statistics = description.statistics
    shown = {"Dataset meta information": _meta_table(description)}
    if statistics["readable"]:
        shown[RESOLUTION] = _resolution_table(statistics)
        shown["Label statistics"] = _label_table(description)
        shown["Grids"] = _grid_table(statistics)
        shown[INTENSITIES] = _intensity_table(statistics["intensity"])
    if statistics.get("tumours"):
        shown["Tumours"] = _tumour_table(statistics["tumours"])
    if description.comparison is not None:
        rows = [
            (row["item"], row["published"], row["computed"], "yes" if row["agrees"] else "no")
            for row in description.comparison
        ]
        shown["Comparison with the card"] = Table(("item", "published", "computed", "agrees"), rows)
        keys = ("item", "published", "computed", "why")
        errata = [tuple(each[key] for key in keys) for each in description.errata]
        shown["Suspected errata"] = Table(("item", "published", "computed", "reason"), errata)
    findings = [(each.severity, each.case_id, each.code, each.message, each.where) for each in description.findings]
    shown["Findings"] = Table(("severity", "case", "code", "finding", "where"), findings)
    return shown


def _meta_table(description: Description) -> Table:
    statistics = description.statistics
    heads = (
        "Dimensions", "Modality", "Task Type", "Anatomical Structures", "Number of Categories", "Data Volume",
        "File Format",
    )  # fmt: skip
    formats = ", ".join(statistics.get("formats", {})) or "-"
    categories = max(1, len(description.dataset.labels))
    row = ("3D", "CT", "Segmentation", description.dataset.structure, categories, statistics["cases"], formats)
    return Table(heads, [row])


def _resolution_table(statistics: dict[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = [
        (row, _four_decimals(statistics["spacing_mm"][row]), statistics["size"][row]) for row in ROWS
    ]
    rows.append(("2-D slices in total", "", str(statistics["slices"])))
    return Table(("Dataset Statistics", "spacing (mm)", "size"), rows)


def _four_decimals(spacing_mm: list[float]) -> str:
    """A spacing with as many decimals as dataset cards have."""
    return "(" + ", ".join(f"{value:.4f}" for value in spacing_mm) + ")"


def _label_table(description: Description) -> Table:
    statistics = description.statistics
    rows = [("Occurrences", statistics["with_mask"]), ("Percentage", f"{statistics['percentage']:.4g}%")]
    return Table(("Anatomical Structure", description.dataset.structure), rows)


def _grid_table(statistics: dict[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, ", ".join(f"{value} ({count})" for value, count in statistics[key].items()))
        for name, key in (("orientation (cases)", "orientations"), ("data type (cases)", "dtypes"))
    ]
    rows += [("sheared grids", statistics["sheared"]), ("oblique grids", statistics["oblique"])]
    return Table(("property", "value"), rows)


def _intensity_table(intensity: dict[str, Any]) -> Table:
    percents = list(intensity["body_hu"])
    rows: list[tuple[object, ...]] = [
        (name, *intensity[key].values())
        for name, key in (("body", "body_hu"), ("tumour", "tumour_hu"))
        if intensity[key]
    ]
    blank = [""] * (len(percents) - 3)
    rows += [
        (f"{name}, min / median / max over cases", *intensity[key].values(), *blank)
        for name, key in (("lowest value", "lowest_hu"), ("highest value", "highest_hu"))
    ]
    shares = [f"{100 * value:.3g} %" for value in intensity["share_above_3071_hu"].values()]
    rows.append((f"share above 3071 HU (in {intensity['cases_above_3071_hu']} cases)", *shares, *blank))
    return Table(("percentile", *(f"{percent} %" for percent in percents)), rows)


def _tumour_table(tumours: dict[str, Any]) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, *(tumours[key][row] for row in ROWS))
        for name, key in (
            ("volume (ml)", "ml"),
            ("components", "components"),
            ("extent (mm): left-right, front-back, head-feet", "extent_mm"),
            ("slices with tumour", "slices"),
        )
    ]
    rows.append(("touching the scan's border (cases)", tumours["at_border"], "", ""))
    if tumours["from_body_mm"]:
        vectors = [
            "(" + ", ".join(f"{value:.0f}" for value in tumours["from_body_mm"][key]) + ")"
            for key in ("mean", "deviation")
        ]
        name = "offset of its centre from the body's, to left, front, head (mm): mean, standard deviation"
        rows.append((name, *vectors, ""))
    return Table(("property", *ROWS), rows)
