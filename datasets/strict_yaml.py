"""YAML in which each key occurs once: PyYAML would silently keep the last."""

from pathlib import Path
from typing import Any

import yaml

from datasets.sample import DataError
from datasets.text import read_text

MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"


class _Strict(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a mapping with one key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == MERGE or not isinstance(key, yaml.ScalarNode):
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if name in seen:
                raise DataError(f"{key.value!r} is given twice, in lines {seen[name]} and {line}; remove one of them, "
                                "or correct its key")  # fmt: skip
            seen[name] = line
        return super().construct_mapping(node, deep)


class _Written(_Strict):
    """The same with every scalar as the text that was written: `no` is no False, `1.0` no number."""


_Written.yaml_implicit_resolvers = {}


def strict_yaml(text: str, name: str, as_written: bool = False) -> Any:
    """Parse a page of YAML.

    Args:
        text: the page.
        name: of the page, for messages.
        as_written: whether scalars stay the text that was written; an empty one is "".

    Raises:
        DataError: no YAML, or a key that is given twice; the message names it and both lines.
    """
    try:
        return yaml.load(text, _Written if as_written else _Strict)  # both are safe loaders
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{name}: no YAML ({error})") from error


def read_yaml(path: Path, as_written: bool = False) -> Any:
    """Parse a file of YAML in any encoding; see `strict_yaml`.

    Args:
        path: the file.
        as_written: as in `strict_yaml`.

    Raises:
        DataError: as in `strict_yaml`.
    """
    return strict_yaml(read_text(path), str(path), as_written)
