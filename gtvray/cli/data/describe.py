"""`gtvray data describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, OverwriteOption, Progress, emit


def describe(
    folder: Annotated[Path, typer.Argument(help="A folder of cases.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for describe.md, describe.json and describe.html.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A published dataset card in Markdown, to hold the figures against.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """The tables of a dataset card computed from the files; with --out a page with pictures too.

    Example: gtvray data describe Naso_GTV --out naso_gtv_described
    """
    from gtvray.datasets import describe_dataset, html_page, index_dataset, markdown, parse_card
    from gtvray.errors import NotFoundError
    from gtvray.io import check_outputs, read_text, write_output_json, write_output_text

    if card is not None and not card.is_file():
        raise NotFoundError("no such file", where=card, expected="a dataset card in Markdown")
    published = None if card is None else parse_card(read_text(card))
    dataset = index_dataset(folder, labels_required=False)
    if out is not None:
        names = ("describe.md", "describe.html", "describe.json")
        read = [path for case in dataset.cases for path in (case.image, case.label) if path is not None]
        inputs = [*read, *([card] if card is not None else [])]
        check_outputs([out / name for name in names], inputs=inputs, overwrite=overwrite)
    progress = Progress({"describe": len(dataset.cases) * 0.4}, as_json)
    with progress.live():
        progress.begin("describe", dataset.title)
        description = describe_dataset(dataset, progress.advance, card=published, pictures=out is not None)
    told = markdown(description)
    if out is not None:
        write_output_text(out / "describe.md", told, overwrite=overwrite)
        write_output_text(out / "describe.html", html_page(description), overwrite=overwrite)
        write_output_json(out / "describe.json", description.as_dict(), overwrite=overwrite)
    emit(description.as_dict(), as_json, told if out is None else f"{told}\npage: {out / 'describe.html'}")
