"""Templates of the pages, and the environment that renders them."""

from typing import Any

from shfcas.utils.numbers import fixed, interval


def page_environment() -> Any:
    """Returns the Jinja environment of the pages; texts are escaped, and numbers have filters of their own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shfcas.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"fixed": fixed, "interval": interval}
    return environment
