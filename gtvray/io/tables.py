"""Tables of values, rendered as Markdown for files and as aligned text for terminals; HTML is in `gtvray.io.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO

_UNBOUNDED_WIDTH = 10_000


@dataclass(frozen=True)
class Table:
    """Column headings and rows.

    Attributes:
        heads: column headings.
        rows: values, as many per row as there are headings; `format_value` turns them into text.
        caption: a line above the table in HTML.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    @cached_property
    def cells(self) -> list[list[str]]:
        """The text of every cell, row by row."""
        return [[format_value(value) for value in row] for row in self.rows]

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column is aligned right: it holds numbers and is not the first, which names the rows."""
        columns = [[text for text in column if text not in ("", "-")] for column in zip(*self.cells, strict=True)]
        if not columns:
            return [False] * len(self.heads)
        return [index > 0 and bool(column) and all(map(_is_number, column)) for index, column in enumerate(columns)]

    def markdown(self) -> str:
        """A Markdown table; "None." if there are no rows."""
        if not self.rows:
            return "None."
        rule = ["---:" if numeric else "---" for numeric in self.numeric]
        return "\n".join(_markdown_row(row) for row in (self.heads, rule, *self.cells))

    def text(self, width: int | None = None) -> str:
        """Columns aligned with spaces; cells wrap to fit lines of `width` characters, or not at all with None."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for head, numeric in zip(self.heads, self.numeric, strict=True):
            shown.add_column(Text(head), justify="right" if numeric else "left", overflow="fold")
        for row in self.cells:
            shown.add_row(*map(Text, row))
        target = StringIO()
        Console(file=target, width=width or _UNBOUNDED_WIDTH, legacy_windows=False).print(shown)
        return "\n".join(line.rstrip() for line in target.getvalue().rstrip().splitlines())


def format_value(value: object) -> str:
    """A value as text: floats with five significant digits, sequences in parentheses, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(format_value(each) for each in value) + ")"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%").rstrip().replace(",", ""))
    except ValueError:
        return False
    return True


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
