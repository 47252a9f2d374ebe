"""Self-contained HTML pages: Jinja2 templates that escape every value, with pictures embedded in the page.

Each package keeps its templates in a folder `templates`; `base.html` and `macros.html` in this package are shared.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Picture:
    """A picture that is embedded in a page.

    Attributes:
        content: the encoded file.
        kind: image subtype: "webp", "png" or "svg+xml".
        alt: description for readers who do not see it.
        caption: text below it; empty for none.
        anchor: id of its figure in the page; empty for none.
    """

    content: bytes
    kind: str
    alt: str
    caption: str = ""
    anchor: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


def render_page(package: str, template: str, **context: object) -> str:
    """Render a page; every value is escaped.

    Args:
        package: dotted name of the package that holds the template.
        template: file name in its `templates` folder.
        context: the template's variables. A variable that the template uses and the context lacks is an error.
    """
    return _environment(package).get_template(template).render(context)


@lru_cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "gtvray.io"))])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
