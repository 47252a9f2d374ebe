"""The commands of `gtvray data`."""

import typer

from gtvray.cli.data.convert import export_dataset, import_dataset, phantom
from gtvray.cli.data.inspect import check, describe, ledger
from gtvray.cli.data.prepare import prepare, split
from gtvray.cli.settings import SettingsCommand

app = typer.Typer(
    help="Describe, check, convert, split or prepare a dataset.",
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
