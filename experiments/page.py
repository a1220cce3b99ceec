"""Reports as one HTML page, with their pictures inside."""

import base64
import functools
import importlib.resources
from typing import Any

import jinja2
import markupsafe

from jaxleak.experiments import words


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
      template: a file, as its path from this folder.
      **values: what it shows. Unless the template says itself where its page comes from, it has `config`, the settings
        of the run, and `record`, what `config.json` says of how it was made.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters["number"] = words.number
    environment.filters["breakable"] = _breakable
    for kind in ("png", "jpeg"):
        environment.filters[kind] = functools.partial(_inside, kind)
    return environment.get_template(template).render(plural=words.plural, **values)


def _breakable(name: str) -> markupsafe.Markup:
    """A long name that may go on in the next line after a colon, a comma or a plus."""
    escaped = str(markupsafe.escape(name))
    for sign in ":,+":
        escaped = escaped.replace(sign, f"{sign}<wbr>")
    return markupsafe.Markup(escaped)


def _inside(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _source(name: str) -> str:
    return importlib.resources.files("jaxleak.experiments").joinpath(name).read_text("utf-8")
