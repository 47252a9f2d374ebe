"""The HTML page of a dataset description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gtvray import NOTICE
from gtvray.datasets.description.describe import ROWS_NOTE, Description, file_tree
from gtvray.datasets.description.statistics import histogram, rows_of_cases
from gtvray.datasets.description.tables import INTENSITIES, RESOLUTION, tables
from gtvray.io import Picture, Table, render_page

# At about 10 kB per case. Cases with findings are preferred; the others beyond this number are omitted.
_MAX_PICTURES = 300
_LOW_HU, _HIGH_HU, _BIN_HU = -1024, 1024, 32
_BODY_COLOUR, _TUMOUR_COLOUR = "#6b8ba4", "#2e9e44"
# Geometry of a histogram in SVG units; the template has the size of the drawing.
_LEFT, _BASE, _WIDTH, _HEIGHT, _TICKS = 10, 140, 700, 110, 8


def html_page(description: Description) -> str:
    """Render the page; it has pictures if the description has them."""
    tiles = _tiles(description)
    pictures = sum(survey.picture is not None for survey in description.surveys)
    return render_page(
        "gtvray.datasets.description",
        "description.html",
        notice=NOTICE,
        description=description,
        tables=tables(description),
        resolution_title=RESOLUTION,
        intensities_title=INTENSITIES,
        rows_note=ROWS_NOTE,
        histograms=list(_histograms(description)),
        file_tree=file_tree(description.dataset, description.name),
        tiles=tiles,
        omitted=pictures - len(tiles),
        cases=_case_table(description),
    )


def _histograms(description: Description) -> Iterator[dict[str, Any]]:
    facts = [survey.facts for survey in description.surveys if survey.facts is not None]
    body = [each.body_counts for each in facts]
    tumour = [each.tumour_counts for each in facts if each.tumour_counts is not None]
    named = (("HU in the body", _BODY_COLOUR, body), ("HU in the tumour", _TUMOUR_COLOUR, tumour))
    for title, colour, counts in named:
        if counts:
            shares = histogram(counts, low=_LOW_HU, high=_HIGH_HU, width=_BIN_HU)
            yield _bars(title, colour, [(str(edge), share) for edge, share in shares])
    volumes_ml = [each.tumour.ml for each in facts if each.tumour is not None]
    if volumes_ml:
        # Bins double, since the volumes of a dataset spread over three decades.
        edges = [2.0**power for power in range(-5, 13)]
        shares_ml = [(f"{edge:g}", sum(edge <= ml < 2 * edge for ml in volumes_ml) / len(volumes_ml)) for edge in edges]
        filled = [index for index, (_, share) in enumerate(shares_ml) if share]
        yield _bars("tumour volume (ml, bins double)", _TUMOUR_COLOUR, shares_ml[filled[0] : filled[-1] + 1])


def _bars(title: str, colour: str, shares: list[tuple[str, float]]) -> dict[str, Any]:
    """The template's view of a histogram: bars in SVG units, and every n-th label."""
    highest = max(share for _, share in shares) or 1.0
    step = _WIDTH / len(shares)
    bars = [
        {
            "x": f"{_LEFT + index * step:.1f}",
            "y": f"{_BASE - _HEIGHT * share / highest:.1f}",
            "width": f"{step * 0.9:.1f}",
            "height": f"{_HEIGHT * share / highest:.1f}",
            "label": f"from {label}: {share:.2%}",
        }
        for index, (label, share) in enumerate(shares)
    ]
    every = max(1, len(shares) // _TICKS)
    ticks = [(bars[index]["x"], shares[index][0]) for index in range(0, len(shares), every)]
    return {"title": title, "colour": colour, "bars": bars, "ticks": ticks}


def _tiles(description: Description) -> list[Picture]:
    """A picture per case, in the order of cases; of too many, those with findings first."""
    with_findings = {finding.case_id for finding in description.findings}
    drawn = [survey for survey in description.surveys if survey.picture is not None]
    preferred = sorted(drawn, key=lambda survey: survey.case_id not in with_findings)
    chosen = {survey.case_id for survey in preferred[:_MAX_PICTURES]}
    tiles = []
    for survey in drawn:
        if survey.case_id in chosen and survey.picture is not None:
            case = survey.case_id
            volume = f"{survey.facts.tumour.ml:.3g} ml" if survey.facts and survey.facts.tumour else "no mask"
            caption = f"{case} · {volume}{' · see findings' if case in with_findings else ''}"
            tiles.append(Picture(survey.picture, "webp", f"slices of case {case}", caption, f"case-{case}"))
    return tiles


def _case_table(description: Description) -> Table:
    rows = rows_of_cases(description.surveys)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return Table([key.replace("_", " ") for key in keys], [[row.get(key) for key in keys] for row in rows])
