"""Reads and writes YAML as plain values: dicts, lists and text. Mistakes and attacks are refused.

- A value without quotes stays text, of the class `Plain`. Its key decides what it means: see `scalars`.
- A key that stands twice is refused. PyYAML would take the last one without a word.
- References to references can make a small file huge. Such a file is refused, and so are tags.
- A message says what is wrong and where. It quotes no value of the file, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from maskloom.errors import UserError
from maskloom.scalars import NULL, Plain, by_form, is_ambiguous

MOST_CHARACTERS = 1 << 18
MOST_VALUES = 100_000
"""Most values of a file. A reference counts as all the values that it stands for."""
MERGE = "tag:yaml.org,2002:merge"
PLAIN = "tag:maskloom:plain"
TEXT, LIST, MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
Path = tuple[str | int, ...]
"""Where a value stands in a tree: keys, and positions in lists from 0."""
REMEDIES = {
    "'\\t' that cannot": ": it is a tab. Indent with spaces",
    "that cannot start any token": ": write the value in quotes",
    "mapping values are not allowed": ": is this line indented further than the one above it, or is the blank behind ':' missing "
    "there? A value with ': ' in it needs quotes",
    "expected <block end>": ": indent the keys of one section, and the items of one list, alike",
    "undefined alias": ": text that begins with '*' needs quotes",
}
"""What PyYAML says -> what to do."""
LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Line ends in YAML 1.1, but plain characters in YAML 1.2."""


class _Refused(Exception):
    """What is wrong, with its line and column."""

    def __init__(self, what: str, mark: yaml.Mark | None) -> None:
        super().__init__(f"{what} (line {mark.line + 1}, column {mark.column + 1})" if mark else what)


class _Loader(yaml.SafeLoader):
    """Marks every value that has neither quotes nor a tag as plain."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return MERGE if value == "<<" else PLAIN
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that some version of YAML would read as something else."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        found: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_text = kind is yaml.ScalarNode and implicit[0] and found == TEXT
        return PLAIN if is_text and (not isinstance(by_form(value), str) or is_ambiguous(value)) else found


def read_yaml(text: str, where: str, is_one_value: bool = False) -> Any:
    """The content of a YAML text: dicts, lists, text, `Plain` and None.

    Args:
        where: what the text comes from, for messages.
        is_one_value: refuse anything after the value, even a comment.

    Raises:
        UserError: with `where`, the fault, and its line and column.
    """
    try:
        if len(text) > MOST_CHARACTERS:
            raise _Refused(f"it has {len(text):,} characters, more than {MOST_CHARACTERS:,}", None)
        if found := LINE_ENDS.search(text):
            what = f"it holds U+{ord(found[0]):04X}, which some read as the end of a line: remove it"
            raise _Refused(f"{what} (line {text.count(chr(10), 0, found.start()) + 1})", None)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if is_one_value and node.end_mark.index < len(text.rstrip()):
                raise _Refused("something stands behind the value", node.end_mark)
            _check(node)
            return _built(node)
        finally:
            loader.dispose()
    except _Refused as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where} is not valid YAML: {_explained(error)}") from None
    except yaml.reader.ReaderError as error:
        what = f"it holds the character U+{ord(text[error.position]):04X}, which YAML does not allow: remove it"
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where} is not valid YAML: {what} (line {line})") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as a character that YAML does not allow
        reason = str(error).split("\n")[0]
        raise UserError(f"{where} is not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: lists or mappings are nested too deeply") from None


def _explained(error: yaml.MarkedYAMLError) -> _Refused:
    """What PyYAML found, with what to do about it."""
    problem, mark = error.problem or str(error.context), error.problem_mark or error.context_mark
    if "end of stream" in problem and error.context_mark:
        return _Refused("a quote or a bracket is opened and not closed", error.context_mark)
    remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in problem), "")
    return _Refused(problem + remedy, mark)


def key_lines(text: str) -> dict[Path, int]:
    """Path of every value of a YAML text that `read_yaml` takes -> the line of its key, or of the item of a list, from 1."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return dict(_key_lines(node, ())) if node is not None else {}
    finally:
        loader.dispose()


def _key_lines(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    """What << merges comes first, so that a key of the mapping itself replaces it."""
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield (*path, place), item.start_mark.line + 1
            yield from _key_lines(item, (*path, place))
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == MERGE:
            for part in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _key_lines(part, path)
    for key, value in node.value:
        if key.tag != MERGE:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _key_lines(value, (*path, key.value))


def write_yaml(tree: object) -> str:
    """A YAML text that `read_yaml` and `scalars.read_by_form` turn back into `tree`. Every version of YAML reads it alike."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def _built(node: yaml.Node) -> Any:
    """The value of a node. If two places refer to one node, each gets a value of its own."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag in (PLAIN, MERGE):
            return None if NULL.fullmatch(node.value) else Plain(node.value)
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_built(child) for child in node.value]
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == MERGE:
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(part, yaml.MappingNode):
                    raise _Refused("<< takes a mapping, or a list of mappings", part.start_mark)
                merged = {**_built(part), **merged}
    return merged | {_key(key): _built(value) for key, value in node.value if key.tag != MERGE}


def _key(node: yaml.ScalarNode) -> str:
    return Plain(node.value) if node.tag == PLAIN else node.value


def _check(root: yaml.Node) -> None:
    """Raises `_Refused` for doubled keys, tags, values that contain themselves, and too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if node.tag not in (PLAIN, MERGE, TEXT, LIST, MAPPING):
            raise _Refused("tags mean nothing here: remove what begins with '!'", node.start_mark)
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
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused("a key is a list or a mapping", key.start_mark)
        if key.tag == MERGE:
            continue
        if key.value in lines:
            what = f"the key {key.value!r} stands here and in line {lines[key.value]}: remove one"
            raise _Refused(what, key.start_mark)
        lines[key.value] = key.start_mark.line + 1
