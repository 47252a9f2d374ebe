"""A description as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
from html import escape

from gtvray import NOTICE
from gtvray.data.description.describe import ROWS_NOTE, Description, file_tree
from gtvray.data.description.statistics import histogram, rows_of_cases
from gtvray.data.description.tables import Table, tables, text

# At about 10 kB a case; beyond, those with findings come first and the rest is left out.
_MOST_PICTURES = 300
_BARS = (-1024, 1024, 32)
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#1d2730;background:#fff}
h1{font-size:1.7em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:2px solid #d8e0e6}
.notice{background:#fff6dd;border-left:4px solid #e0a100;padding:.5em .8em}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9em}#cases th{cursor:pointer}
th{background:#eef2f5;text-align:left;position:sticky;top:0}
td,th{padding:.25em .7em;border-bottom:1px solid #e3e8ec;vertical-align:top}td.n{text-align:right;white-space:nowrap}
tr.error td:first-child{color:#b00020;font-weight:600}tr.warning td:first-child{color:#9a6200;font-weight:600}
.montage{display:grid;grid-template-columns:repeat(auto-fill,minmax(370px,1fr));gap:10px}
figure{margin:0;background:#000;color:#ddd;padding:4px;font-size:.8em}
figure img{display:block;margin:auto;max-width:100%}
pre{background:#f4f6f8;padding:.8em}svg{width:100%;max-width:720px;height:auto}.small{color:#5c6a75;font-size:.88em}
"""

# A click on a heading sorts the table by it, a second click the other way.
_SORT = """
document.querySelectorAll("#cases th").forEach((head, column) => head.onclick = () => {
  const table = head.closest("table"), way = head.dataset.way = head.dataset.way === "1" ? "-1" : "1";
  const key = row => row.cells[column].textContent;
  const compare = (a, b) => isNaN(a - b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
  [...table.rows].slice(1).sort((a, b) => way * compare(key(a), key(b))).forEach(row => row.parentNode.append(row));
});
"""


def html_page(description: Description) -> str:
    """The page; pictures are in it if the description has them."""
    parts = [f"<h1>{escape(description.name)}</h1><p>{escape(description.dataset.title)}</p>"]
    parts.append(f'<p class="notice">{escape(NOTICE)}</p>')
    for title, table in tables(description).items():
        parts.append(f"<h2>{escape(title)}</h2>{_table(table)}")
        if title == "Resolution":
            parts.append(f'<p class="small">{escape(ROWS_NOTE)}</p>')
        if title.startswith("Intensities"):
            parts.append(_histograms(description))
    parts.append(f"<h2>File structure</h2><pre>{escape(file_tree(description.dataset, description.name))}</pre>")
    parts.append(_montage(description))
    parts.append(_cases(description))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    title = f"<title>{escape(description.name)}</title>"
    body = f"{''.join(parts)}<script>{_SORT}</script>"
    return f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{body}</body></html>\n'


def _table(table: Table) -> str:
    heads, rows = table
    if not rows:
        return "<p>None.</p>"
    lines = ["<tr>" + "".join(f"<th>{escape(str(head))}</th>" for head in heads) + "</tr>"]
    for row in rows:
        kind = f' class="{row[0]}"' if row[0] in ("error", "warning", "info") else ""
        lines.append(f"<tr{kind}>" + "".join(_cell(cell) for cell in row) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(value: object) -> str:
    shown = text(value)
    return f'<td class="n">{shown}</td>' if isinstance(value, int | float) else f"<td>{escape(shown)}</td>"


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
            data = base64.b64encode(survey.picture).decode()
            name = escape(survey.case_id)
            volume = f"{survey.facts.tumour.ml:.3g} ml" if survey.facts and survey.facts.tumour else "no mask"
            mark = " · see findings" if survey.case_id in with_findings else ""
            figures.append(
                f'<figure id="case-{name}"><img loading="lazy" alt="slices of case {name}" '
                f'src="data:image/webp;base64,{data}"><figcaption>{name} · {volume}{mark}</figcaption></figure>'
            )
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
    table = _table((heads, [[row.get(key) for key in keys] for row in rows]))
    return f'<h2>Cases</h2><p class="small">A click on a heading sorts.</p><div id="cases">{table}</div>'
