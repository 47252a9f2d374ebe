"""A document of sections, written as Markdown and as a self-contained HTML page: decision records and model cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gtvray import NOTICE
from gtvray.io import Table, render_page


@dataclass(frozen=True)
class Section:
    """A section of a document; empty parts are omitted.

    Attributes:
        title: its heading.
        paragraphs: text.
        points: a list below the text.
        table: a table below the list.
    """

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Document:
    """A title, highlighted sentences at the top (`lead`), and sections."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]

    def markdown(self) -> str:
        """The document in Markdown, with the safety notice."""
        blocks = [f"# {self.title}", NOTICE, *(f"**{line}**" for line in self.lead)]
        for section in self.sections:
            blocks += [f"## {section.title}", *section.paragraphs]
            if section.points:
                blocks.append("\n".join(f"- {line}" for line in section.points))
            if section.table is not None:
                blocks.append(section.table.markdown())
        return "\n\n".join(blocks) + "\n"

    def write(self, folder: Path, name: str) -> None:
        """Write `NAME.md` and `NAME.html`."""
        (folder / f"{name}.md").write_text(self.markdown())
        (folder / f"{name}.html").write_text(
            render_page("gtvray.promotion", "document.html", document=self, notice=NOTICE)
        )
