"""A description as Markdown: the card's tables first, then what a card leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gtvray import NOTICE
from gtvray.datasets.description.describe import ROWS_NOTE, Description, file_tree
from gtvray.datasets.description.statistics import ROWS
from gtvray.io import cell_text

Row = Sequence[Any]
Table = tuple[Row, list[Row]]


def markdown(description: Description) -> str:
    """The whole description, without pictures."""
    parts = [f"# {description.name}", f"{description.dataset.title}. {NOTICE}"]
    for title, table in tables(description).items():
        parts += [f"## {title}", _markdown(table)]
        if title == "Resolution":
            parts.append(ROWS_NOTE)
    parts += ["## File structure", f"```text\n{file_tree(description.dataset, description.name)}\n```"]
    return "\n\n".join(parts) + "\n"


def tables(description: Description) -> dict[str, Table]:
    """Every table by its title, as headings and rows of text."""
    found = description.figures
    shown = {"Dataset meta information": _meta(description)}
    if found["readable"]:
        shown |= {"Resolution": _resolution(found), "Label statistics": _labels(description), "Grids": _grids(found)}
        shown["Intensities (HU)"] = _intensities(found["intensity"])
    if found.get("tumours"):
        shown["Tumours"] = _tumours(found["tumours"])
    if description.compared is not None:
        rows: list[Row] = [
            (row["item"], cell_text(row["published"]), cell_text(row["computed"]), "yes" if row["agrees"] else "no")
            for row in description.compared
        ]
        shown["Against the card"] = (("item", "published", "computed", "agrees"), rows)
        keys = ("item", "published", "computed", "why")
        shown["Suspected errata"] = (keys, [tuple(each[key] for key in keys) for each in description.errata])
    rows = [(each.severity, each.case_id, each.code, each.message, each.where) for each in description.findings]
    shown["Findings"] = (("severity", "case", "code", "finding", "where"), rows)
    return shown


def _meta(description: Description) -> Table:
    found = description.figures
    heads = (
        "Dimensions", "Modality", "Task Type", "Anatomical Structures", "Number of Categories", "Data Volume",
        "File Format",
    )  # fmt: skip
    formats = ", ".join(found.get("formats", {})) or "-"
    categories = max(1, len(description.dataset.labels))
    return heads, [("3D", "CT", "Segmentation", description.dataset.structure, categories, found["cases"], formats)]


def _resolution(found: dict[str, Any]) -> Table:
    rows: list[Row] = [(row, _four(found["spacing_mm"][row]), cell_text(found["size"][row])) for row in ROWS]
    return ("Dataset Statistics", "spacing (mm)", "size"), [*rows, ("2-D slices in all", "", str(found["slices"]))]


def _four(spacing: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in spacing) + ")"


def _labels(description: Description) -> Table:
    found = description.figures
    share = f"{found['percentage']:.4g}%"
    return ("Anatomical Structure", description.dataset.structure), [
        ("Occurrences", found["with_mask"]),
        ("Percentage", share),
    ]


def _grids(found: dict[str, Any]) -> Table:
    rows: list[Row] = [
        (name, ", ".join(f"{value} ({count})" for value, count in found[key].items()))
        for name, key in (("orientation (cases)", "orientations"), ("data type (cases)", "dtypes"))
    ]
    rows += [("axes not at right angles", found["sheared"]), ("axes turned against the patient's", found["oblique"])]
    return ("what", "found"), rows


def _intensities(found: dict[str, Any]) -> Table:
    percents = list(found["body_hu"])
    rows: list[Row] = [
        (name, *found[key].values()) for name, key in (("body", "body_hu"), ("tumour", "tumour_hu")) if found[key]
    ]
    blank = [""] * (len(percents) - 3)
    rows += [
        (f"{name}, min / median / max over cases", *(cell_text(value) for value in found[key].values()), *blank)
        for name, key in (("lowest value", "lowest_hu"), ("highest value", "highest_hu"))
    ]
    shares = [f"{100 * value:.3g} %" for value in found["share_above_3071_hu"].values()]
    rows.append((f"share above 3071 HU (in {found['cases_above_3071_hu']} cases)", *shares, *blank))
    return ("percentile", *(f"{percent} %" for percent in percents)), rows


def _tumours(found: dict[str, Any]) -> Table:
    rows: list[Row] = [
        (name, *(cell_text(found[key][row]) for row in ROWS))
        for name, key in (
            ("volume (ml)", "ml"),
            ("components", "components"),
            ("extent (mm): left-right, front-back, head-feet", "extent_mm"),
            ("slices with tumour", "slices"),
        )
    ]
    rows.append(("touching the scan's border (cases)", found["at_border"], "", ""))
    if found["from_body_mm"]:
        said = [
            "(" + ", ".join(f"{value:.0f}" for value in found["from_body_mm"][key]) + ")"
            for key in ("mean", "deviation")
        ]
        rows.append(("centre from the body's, to left, front, head (mm): mean, deviation", *said, ""))
    return ("what", *ROWS), rows


def _markdown(table: Table) -> str:
    heads, rows = table
    if not rows:
        return "None."
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
