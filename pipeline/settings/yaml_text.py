"""YAML as people mean it: safe, and with the numbers of YAML 1.2.

Knows nothing of what the text is for.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.parser import ParserError
from yaml.scanner import ScannerError


class Yaml12Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2: in 1.1, a column range such as 0:52 is a number of base 60."""


Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Return what a text says.

    Raises:
        YAMLError: it is not YAML.
    """
    return yaml.load(text, Yaml12Loader)  # noqa: S506 - a SafeLoader


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return what is wrong and where, without the text itself: it may hold credentials."""
    problem = error.problem if isinstance(error, ScannerError | ParserError) else "unknown tag or alias"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} at line {mark.line + 1}, column {mark.column + 1}" if mark else f"{problem}"
