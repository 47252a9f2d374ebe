"""HTML pages that need nothing else: no network, no other file. Text is escaped here, and tables sort by a click."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[object]

# A browser holds the page to it: nothing is fetched, whatever a case may be called.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#1d2730;background:#fff}
h1{font-size:1.7em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:2px solid #d8e0e6}
h3{font-size:1em;margin:1.2em 0 .4em}.wide{overflow-x:auto}
.notice{background:#fff6dd;border-left:4px solid #e0a100;padding:.5em .8em}
table{border-collapse:collapse;font-size:.9em}caption{text-align:left;padding:.3em 0;color:#44525e}
thead th{background:#eef2f5;position:sticky;top:0}th{text-align:left}tbody th{font-weight:inherit}
td,th{padding:.25em .7em;border-bottom:1px solid #e3e8ec;vertical-align:top}
td.n{text-align:right;white-space:nowrap}
th button{all:inherit;display:inline;padding:0;border:0;background:none;cursor:pointer;text-decoration:underline dotted}
th button:focus-visible{outline:2px solid #1f6feb}
th[aria-sort=ascending] button::after{content:" \\25b2"}th[aria-sort=descending] button::after{content:" \\25bc"}
tr.error th{color:#b00020;font-weight:600}tr.warning th{color:#8a5600;font-weight:600}
.montage{display:grid;grid-template-columns:repeat(auto-fill,minmax(370px,1fr));gap:10px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(460px,1fr));gap:14px}
figure{margin:0 0 10px;padding:4px;font-size:.85em;border:1px solid #d8e0e6}
figure.dark{background:#000;color:#ddd;border-color:#000}
figure img{display:block;margin:auto;max-width:100%}
pre{background:#f4f6f8;padding:.8em}svg{width:100%;max-width:720px;height:auto}.small{color:#4d5a64;font-size:.88em}
@media print{body{margin:0;max-width:none;font-size:11px}thead th{position:static}figure,tr{break-inside:avoid}
h2,h3{break-after:avoid}.wide{overflow:visible}*{print-color-adjust:exact}}
"""
# A heading becomes a button; a press sorts the table by its column, a second press the other way.
_SORT = """
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].textContent;
      const compare = (a, b) => isNaN(a - b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
      body.append(...rows);
    };
  });
});
"""


def html_document(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: pieces of markup, of this module's making or escaped by the caller.
    """
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    content = f"<main>{''.join(body)}</main><script>{_SORT}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{content}</body></html>\n'


def html_table(heads: Row, rows: Iterable[Row], *, caption: str = "", sortable: bool = False) -> str:
    """A table, its first column as headings of the rows; "None." if there is no row.

    Args:
        heads: headings of the columns, plain values.
        rows: plain values, escaped here; what is or reads as a number is set to the right. A row that begins with
            error, warning or info is coloured by it.
        caption: a line above it, plain text.
        sortable: a press on a heading sorts the rows.
    """
    lines = [_row(row) for row in rows]
    if not lines:
        return "<p>None.</p>"
    kind = ' class="sortable"' if sortable else ""
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{escape(str(head))}</th>' for head in heads)
    body = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table{kind}>{told}{body}</table></div>'


def html_picture(content: bytes, kind: str, alt: str, caption: str = "", *, name: str = "", dark: bool = False) -> str:
    """A figure with its picture inside the page.

    Args:
        content: the picture's file.
        kind: "webp", "png" or "svg+xml".
        alt: what it shows, for those who do not see it; plain text.
        caption: below it, plain text.
        name: id of the figure, to find it by.
        dark: on black, as scans are looked at.
    """
    data = base64.b64encode(content).decode()
    marks = (f' id="{escape(name)}"' if name else "") + (' class="dark"' if dark else "")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img loading="lazy" alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'
    return f"<figure{marks}>{image}{below}</figure>"


def cell_text(value: object) -> str:
    """A value as a table shows it, plain text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(cell_text(each) for each in value) + ")"
    return str(value)


def _row(row: Row) -> str:
    kind = f' class="{row[0]}"' if row[0] in ("error", "warning", "info") else ""
    first = f'<th scope="row">{escape(cell_text(row[0]))}</th>'
    return f"<tr{kind}>{first}{''.join(map(_cell, row[1:]))}</tr>"


def _cell(value: object) -> str:
    shown = cell_text(value)
    try:
        float(shown)
    except ValueError:
        return f"<td>{escape(shown)}</td>"
    return f'<td class="n">{escape(shown)}</td>'
