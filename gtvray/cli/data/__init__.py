"""`gtvray data ...`: one file a verb."""

import typer

from gtvray.cli.data.check import check
from gtvray.cli.data.describe import describe
from gtvray.cli.data.exports import export_dataset
from gtvray.cli.data.imports import import_dataset
from gtvray.cli.data.ledger import ledger
from gtvray.cli.data.phantom import phantom
from gtvray.cli.data.prepare import prepare
from gtvray.cli.data.split import split
from gtvray.cli.settings import SettingsCommand

app = typer.Typer(
    help="Describe or check a dataset, bring it from one layout to another, prepare it, or make one of phantoms.",
    no_args_is_help=True,
)
app.command("describe", cls=SettingsCommand)(describe)
app.command("check", cls=SettingsCommand)(check)
app.command("import", cls=SettingsCommand)(import_dataset)
app.command("export", cls=SettingsCommand)(export_dataset)
app.command("prepare", cls=SettingsCommand)(prepare)
app.command("split", cls=SettingsCommand)(split)
app.command("ledger", cls=SettingsCommand)(ledger)
app.command("phantom", cls=SettingsCommand)(phantom)
