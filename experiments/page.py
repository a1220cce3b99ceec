"""Reports as one HTML page, with their pictures inside."""

import base64
import importlib.resources
from typing import Any

import jinja2

from jaxleak.experiments import words


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
      template: a file, as its path from this folder.
      **values: what it shows. Every template has `config`, the settings of the run, and `record`, what `config.json`
        says of how it was made.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters["number"] = words.number
    environment.filters["png"] = lambda content: "data:image/png;base64," + base64.b64encode(content).decode()
    return environment.get_template(template).render(plural=words.plural, **values)


def _source(name: str) -> str:
    return importlib.resources.files("jaxleak.experiments").joinpath(name).read_text("utf-8")
