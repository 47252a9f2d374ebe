"""A description as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from html import escape

from gtvray import NOTICE
from gtvray.datasets.description.describe import ROWS_NOTE, Description, file_tree
from gtvray.datasets.description.statistics import histogram, rows_of_cases
from gtvray.datasets.description.tables import tables
from gtvray.io import html_document, html_picture, html_table

# At about 10 kB a case; beyond, those with findings come first and the rest is left out.
_MOST_PICTURES = 300
_BARS = (-1024, 1024, 32)


def html_page(description: Description) -> str:
    """The page; pictures are in it if the description has them."""
    parts = [f"<h1>{escape(description.name)}</h1><p>{escape(description.dataset.title)}</p>"]
    parts.append(f'<p class="notice">{escape(NOTICE)}</p>')
    for title, table in tables(description).items():
        parts.append(f"<h2>{escape(title)}</h2>{html_table(*table)}")
        if title == "Resolution":
            parts.append(f'<p class="small">{escape(ROWS_NOTE)}</p>')
        if title.startswith("Intensities"):
            parts.append(_histograms(description))
    parts.append(f"<h2>File structure</h2><pre>{escape(file_tree(description.dataset, description.name))}</pre>")
    parts.append(_montage(description))
    parts.append(_cases(description))
    return html_document(description.name, parts)


def _histograms(description: Description) -> str:
    facts = [survey.facts for survey in description.surveys if survey.facts is not None]
    low, high, width = _BARS
    drawn = [
        ("HU in the body", "#6b8ba4", [each.body_counts for each in facts]),
        ("HU in the tumour", "#2e9e44", [each.tumour_counts for each in facts if each.tumour_counts is not None]),
    ]
    bars = [
        _bars(title, colour, [(f"{at}", share) for at, share in histogram(counts, low=low, high=high, width=width)])
        for title, colour, counts in drawn
        if counts
    ]
    volumes = sorted(each.tumour.ml for each in facts if each.tumour is not None)
    if volumes:
        # Doubling bins: volumes of one dataset reach over three decades.
        edges = [2.0**power for power in range(-5, 13)]
        counted = [(f"{edge:g}", sum(edge <= ml < 2 * edge for ml in volumes) / len(volumes)) for edge in edges]
        kept = [number for number, (_, share) in enumerate(counted) if share]
        bars.append(_bars("tumour volume (ml, bins double)", "#2e9e44", counted[kept[0] : kept[-1] + 1]))
    return "".join(bars)


def _bars(title: str, colour: str, shares: list[tuple[str, float]]) -> str:
    tallest = max(share for _, share in shares) or 1.0
    step = 700 / len(shares)
    rects = "".join(
        f'<rect x="{10 + number * step:.1f}" y="{140 - 110 * share / tallest:.1f}" width="{step * 0.9:.1f}" '
        f'height="{110 * share / tallest:.1f}" fill="{colour}"><title>from {label}: {share:.2%}</title></rect>'
        for number, (label, share) in enumerate(shares)
    )
    every = max(1, len(shares) // 8)
    labels = "".join(
        f'<text x="{10 + number * step:.1f}" y="155" font-size="11">{label}</text>'
        for number, (label, _) in enumerate(shares)
        if number % every == 0
    )
    return (
        f'<svg viewBox="0 0 720 165" role="img" aria-label="{escape(title)}">'
        f'<text x="10" y="16" font-size="13">{escape(title)}</text>{rects}{labels}</svg>'
    )


def _montage(description: Description) -> str:
    with_findings = {finding.case_id for finding in description.findings}
    shown = [survey for survey in description.surveys if survey.picture is not None]
    if not shown:
        return ""
    chosen = {
        each.case_id for each in sorted(shown, key=lambda each: each.case_id not in with_findings)[:_MOST_PICTURES]
    }
    figures = []
    for survey in shown:
        if survey.case_id in chosen and survey.picture is not None:
            name = survey.case_id
            volume = f"{survey.facts.tumour.ml:.3g} ml" if survey.facts and survey.facts.tumour else "no mask"
            told = f"{name} · {volume}{' · see findings' if name in with_findings else ''}"
            alt = f"slices of case {name}"
            figures.append(html_picture(survey.picture, "webp", alt, told, name=f"case-{name}", dark=True))
    left = f" {len(shown) - len(figures)} cases are left out." if len(figures) < len(shown) else ""
    about = (
        "Axial, coronal and sagittal slice through the middle of the tumour, outlined in green, at -160 to 240 HU; "
        f"patient left is on the right. Slices only: no surface is drawn that would show a face.{left}"
    )
    return f'<h2>Montage</h2><p class="small">{about}</p><div class="montage">{"".join(figures)}</div>'


def _cases(description: Description) -> str:
    rows = rows_of_cases(description.surveys)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = [key.replace("_", " ") for key in keys]
    table = html_table(heads, [[row.get(key) for key in keys] for row in rows], sortable=True)
    return f'<h2>Cases</h2><p class="small">A press on a heading sorts.</p>{table}'
