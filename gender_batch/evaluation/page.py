"""HTML pages: their templates filled, with no text trusted, and the images that lie within them."""

from __future__ import annotations

from base64 import b64encode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gender_batch.evaluation.text import printable


def fill(template: str, **content: object) -> str:
    """The page of a template in this folder.

    Every text passes `printable`, then the escaping: neither names of files nor of classes are to be trusted.
    """
    environment = Environment(
        loader=PackageLoader("gender_batch", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["range"] = lambda interval: f"{100 * interval[0]:.1f}\N{EN DASH}{interval[1]:.1%}"
    return environment.get_template(template).render(content)


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file of that media type, to stand in the page itself."""
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def _shown(value: object) -> object:
    """Numbers with their thousands set apart, and text made printable, but not the markup of the template's own macros
    once more."""
    if isinstance(value, int):
        return f"{value:,}"
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
