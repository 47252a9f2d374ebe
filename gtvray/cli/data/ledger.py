"""`gtvray data ledger`."""

from __future__ import annotations

from gtvray.cli.common import WORKSPACE, JsonOption, WorkspaceOption, emit, table


def ledger(workspace: WorkspaceOption = WORKSPACE, as_json: JsonOption = False) -> None:
    """List who looked at which cases for what, and on how many models these cases had been looked at by then.

    A look bears the name in GTVRAY_WHO, or else that of the account; it stands in the workspace's ledger only.

    Example: gtvray data ledger
    """
    from gtvray.datasets import Ledger
    from gtvray.io import Workspace

    looks = Ledger(Workspace(workspace).ledger).table()
    rows = [{**look, "subject": look["subject"][:12], "cases": len(look["cases"])} for look in looks]
    columns = {
        "at": "when",
        "who": "who",
        "purpose": "what for",
        "subject": "model",
        "cases": "cases",
        "looks": "models",
    }
    worn = dict.fromkeys(str(look["warning"]) for look in looks if look["warning"])
    text = "\n".join([table(rows, columns), *([list(worn)[-1]] if worn else [])]) if rows else "no look yet"
    emit(looks, as_json, text)
