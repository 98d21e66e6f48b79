"""The report as one self-contained HTML page: tables, plots, and the questions themselves."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting.examples import Example


def render(
    title: str,
    source: str | None,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    plots: Sequence[tuple[str, str]],
    examples: Sequence[Example],
    labels: dict[str, str],
) -> str:
    """Return the page; all text is escaped.

    Args:
        tables: heading, columns and rows of each. plots: caption and SVG of each.
        examples: in the order in which they are shown at first.
        labels: what the examples' `before` and `after` are called, and `of`: the setting that they belong to.
    """
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    content: dict[str, Any] = {
        "title": title,
        "source": source,
        "tables": tables,
        "plots": [(caption, base64.b64encode(svg.encode()).decode()) for caption, svg in plots],
        "examples": examples,
        "labels": labels,
    }
    # Half a surrogate pair, which models write, has no UTF-8.
    return environment.get_template("page.html").render(content).encode("utf-8", "backslashreplace").decode()
