"""YAML as plain values: what `yaml.safe_load` reads, less what is a mistake or an attack.

A key that stands twice is refused (PyYAML takes the last one without a word), and so is a file that is small and becomes
huge by references to references. Messages say what and where, and quote nothing of the file: it may hold a secret.
"""

from __future__ import annotations

from typing import Any

import yaml

from maskloom.errors import UserError

MOST_CHARACTERS = 1 << 20
MOST_VALUES = 100_000
"""Values in all, each reference counted with all that it stands for."""
MERGE = "tag:yaml.org,2002:merge"


class _Refused(Exception):
    """What is wrong, and the place."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(f"{what} (line {mark.line + 1}, column {mark.column + 1})" if mark else what)


def read_yaml(text: str, where: str) -> Any:
    """The plain value that a YAML text holds.

    Raises:
        UserError: naming `where`, the fault, and its line and column.
    """
    try:
        if len(text) > MOST_CHARACTERS:
            raise _Refused(f"it has {len(text):,} characters, more than {MOST_CHARACTERS:,}", None)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except _Refused as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{where} is not valid YAML: {_Refused(error.problem or str(error.context), mark)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character, a date or number that cannot be
        reason = str(error).split("\n")[0]
        raise UserError(f"{where} is not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: lists or mappings are nested too deeply") from None


def _check(root: Any) -> None:
    """Raises `_Refused` for keys that stand twice, values that hold themselves, and too many of them."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in open_nodes:
            raise _Refused("a value refers to itself", node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                children = [child for pair in node.value for child in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
            open_nodes.discard(id(node))
        if sizes[id(node)] > MOST_VALUES:
            raise _Refused(f"with its references it stands for more than {MOST_VALUES:,} values", node.start_mark)
        return sizes[id(node)]

    size(root)


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        name = (key.tag, key.value)
        if name in lines:
            raise _Refused(f"the key '{key.value}' stands here and in line {lines[name]}: remove one", key.start_mark)
        lines[name] = key.start_mark.line + 1
