"""Reads a configuration from its file and the command line, and writes it back into a file.

Later ones win: the defaults of `config`, the YAML file, `key=value` on the command line (`phases.0.steps=20` for an item of a
list).

`scalars` says what a value means, in both places. On the command line everything after the first `=` is the value, without the
blanks around it. If it begins with a quote, `[` or `{`, it is YAML.

An unknown key is an error that names the nearest right one. All errors are reported at once, each with the line of the file
that it is about, or that it is about the command line.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pydantic
from pydantic_core import ErrorDetails

from maskloom.config import MODELS, ONE, SEVERAL, Data, Model, RunConfig, model_section
from maskloom.config_places import Place, Places, in_order, inside, override_path
from maskloom.errors import UserError
from maskloom.files import open_plain
from maskloom.plain_yaml import MOST_CHARACTERS, read_yaml, write_yaml
from maskloom.redaction import secret_keys, secret_urls, shown
from maskloom.scalars import NULL, Plain, by_form, each_plain

QUERY_LEFT_OUT = "?<left-out>"
"""Replaces the query of a URL in a run's config.yaml."""
BLANKS = " \t"
POSITION = re.compile(r"0|[1-9][0-9]{0,8}")
LONGEST_SHOWN = 200
MOST_FAULTS = 50
"""More in one message are not read: the file is another one than was meant."""
CALLED_ELSEWHERE = {
    "batch_size": "global_batch_rows",
    "learning_rate": "lr",
    "max_length": "seq_len",
    "max_seq_length": "seq_len",
    "max_steps": "steps",
    "mlm_probability": "rate",
    "output_dir": "run_dir",
    "per_device_train_batch_size": "micro_batch_rows",
}
"""Names of transformers' Trainer and its examples -> the last part of our key."""
DID_YOU_MEAN = re.compile(r"^unknown key .*: did you mean '([^']+)'\?$")
EXAMPLES = {
    "run_dir": "run_dir: runs/first",
    "phases": "phases: [{steps: 1000, seq_len: 128, global_batch_rows: 256}]",
    "data": "data: {train: FOLDER}, a folder that `maskloom shards` wrote",
    "data.train": "train: FOLDER, which `maskloom shards` wrote",
}
"""What a key that is missing may look like."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file at `path`, apply `key=value` overrides, and check the whole.

    Raises:
        UserError: it lists all faults by line, each with its key, the value and what to do.
    """
    path = Path(path)
    try:
        is_stream = path.is_relative_to("/dev") or path.is_relative_to("/proc")  # standard input, a shell's `<(...)`
        with open(path, "rb", opener=None if is_stream else open_plain) as file:
            text = file.read(4 * MOST_CHARACTERS + 1).decode()  # a character has at most four bytes
    except UserError as error:
        raise UserError(f"cannot read the configuration: {error}") from None
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not valid YAML: {error.reason} in UTF-8 (line {line}): save it as UTF-8") from None
    tree = read_yaml(text, str(path))
    if not isinstance(tree, dict):
        found = "it is empty" if tree is None else f"it holds {'a list' if isinstance(tree, list) else 'one value'}"
        raise UserError(f"{path} must hold `key: value` lines, and {found}")
    _apply(tree, overrides)
    return parse_config(tree, str(path), Places(text, [override_path(override) for override in overrides]))


def _apply(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    wrong = []
    for override in overrides:
        try:
            apply_override(tree, override)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))


def parse_config(tree: dict[str, object], where: str, places: Places | None = None) -> RunConfig:
    """Check a tree of plain values, read from `where`. Raises UserError with all faults, and their `places` if they are known."""
    places = places or Places()
    _refuse_secrets(tree, where, places)
    try:
        return RunConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        details = error.errors()
        # pydantic counts valid items only, so it also reports a list whose one phase is wrong as too short.
        inside = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]))}
        faults = [each for each in details if each["type"] != "too_short" or each["loc"] not in inside]
        lines = _in_lines(faults[:MOST_FAULTS], tree, places)
        if len(faults) > MOST_FAULTS:
            lines.append(f"and {len(faults) - MOST_FAULTS:,} more")
        raise _refusal(where, lines) from None


def _in_lines(details: Sequence[ErrorDetails], tree: Mapping[str, object], places: Places) -> list[str]:
    """All faults, a line each, in the order of the file."""
    faults: list[tuple[Place, str]] = []
    misspelt = set()
    for detail in details:
        path = tuple(part for part in detail["loc"] if part not in (ONE, SEVERAL))
        key = ".".join(map(str, path))
        if detail["type"] == "value_error":  # ours: it may name several settings, and has a line for each fault
            lines = str(detail["ctx"]["error"]).split("\n")
            faults += [(places.of(path, said), f"{key}: {said}" if key else said) for said in lines]
            continue
        said = _fault(detail, tree)
        faults.append((places.of(inside(path, detail["msg"])[0]), said))
        if alike := DID_YOU_MEAN.search(said):
            misspelt.add(".".join(map(str, (*path[:-1], alike[1]))))
    # A key that was misspelt is not missing, too.
    missing = tuple(f"'{key}' is missing" for key in misspelt)
    return in_order([each for each in faults if not each[1].startswith(missing)])


def rechecked(config: RunConfig, where: str) -> RunConfig:
    """Check a configuration again after parts of it were replaced, as if it had been read from `where`."""
    return parse_config(read_yaml(dump_config(config), where), where)


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML; `load_config` reads it back to an equal one."""
    return write_yaml(config_tree(config))


def config_tree(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as plain values."""
    tree = config.model_dump(mode="json", by_alias=True)
    if config.model.init:  # the shape is the checkpoint's, and little of it may be given beside it
        tree["model"] = {
            key: value for key, value in tree["model"].items() if key not in config.model.taken_from_init()
        }
    return tree


def without_queries(data: Data) -> Data:
    """The data as a run's folder names it, without the queries of URLs: they may be keys to private data."""
    train = data.train
    saved = (
        _without_query(train)
        if isinstance(train, str)
        else tuple(corpus.model_copy(update={"path": _without_query(corpus.path)}) for corpus in train)
    )
    return data.model_copy(update={"train": saved})


def _without_query(url: str) -> str:
    left = shown(url)
    return left if left == url else f"{left}{QUERY_LEFT_OUT}"


def _refuse_secrets(tree: Mapping[str, object], where: str, places: Places) -> None:
    """Raises UserError if values are secrets: the run saves its configuration, and each checkpoint the deepspeed block."""
    wrong = [
        f"{key}: a URL here holds no user and no password: leave them out (S3's credentials are found as the AWS tools "
        "find them)"
        for key in secret_urls(tree)
    ]
    wrong += [
        f"{key}: its name says that it is a secret, and it would be saved in config.yaml and in every checkpoint: remove it. "
        "Set the environment variable that the service reads"
        for key in secret_keys(each_plain(tree.get("deepspeed"), by_form), "deepspeed.")
    ]
    if wrong:
        raise _refusal(where, in_order([(places.of((), line), line) for line in wrong]))


def _refusal(where: str, faults: Sequence[str]) -> UserError:
    """An error that lists all faults, one on each line."""
    return UserError(f"{where}:\n" + "\n".join(f"  {_printable(fault)}" for fault in faults))


def differences(
    left: Mapping[str, object], right: Mapping[str, object], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (left value, right value) for every leaf in which two plain trees differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(left.keys() | right.keys()):
        one, other = left.get(key), right.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= differences(one, other, f"{prefix}{key}.")
        elif isinstance(one, list) and isinstance(other, list):
            found |= differences(dict(enumerate(one)), dict(enumerate(other)), f"{prefix}{key}.")  # type: ignore[arg-type]
        elif one != other:
            found[f"{prefix}{key}"] = (one, other)
    return found


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one key of a tree of plain values as `key=value` says. Raises UserError if it cannot be set."""
    key, equals, text = override.partition("=")
    key = key.strip(BLANKS)
    if not equals or not key:
        raise UserError(f"{override!r} is not key=value, for example phases.0.steps=20")
    if not all(part.strip(BLANKS) for part in key.split(".")):
        raise UserError(f"{override!r}: a part of the key {key!r} is empty: write it as in phases.0.steps=20")
    value = _value(text.strip(BLANKS), f"the value of {key!r}")
    node: Any = tree
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        node = _child(node, name, f"{key!r}: {'.'.join(parents[:depth])!r}")
    if isinstance(node, list):
        node[_position(node, last, f"{key!r}: {'.'.join(parents)!r}")] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"{key!r}: {'.'.join(parents)!r} holds one value, and no keys below it")


def _value(text: str, where: str) -> object:
    if text.startswith(("'", '"', "[", "{")):
        return read_yaml(text, where, is_one_value=True)
    return None if NULL.fullmatch(text) else Plain(text)


def _child(node: Any, name: str, where: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, name, where)]
    if isinstance(node, dict):
        if node.get(name) is None:
            node[name] = {}
        return node[name]
    raise UserError(f"{where} holds one value, and no keys below it")


def _position(items: list[Any], name: str, where: str) -> int:
    if not POSITION.fullmatch(name) or int(name) >= len(items):
        raise UserError(f"{where} is a list of {len(items)}, which has no item {name!r}: they count from 0")
    return int(name)


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _fault(detail: ErrorDetails, tree: Mapping[str, object]) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part not in (ONE, SEVERAL))
    match detail["type"]:
        case "extra_forbidden":
            beside, last = _keys_beside(detail["loc"], tree), str(detail["loc"][-1])
            if key == f"model.{last}" and (
                owners := [name for name, each in MODELS.items() if last in each.model_fields]
            ):
                given = cast(dict[str, Any], tree["model"])
                said = f"unknown key '{key}': it belongs to architecture {_listed(owners)}"
                if given.get("init") and "architecture" not in given:
                    return f"{said}: if the checkpoint of model.init is one, set model.architecture too"
                own = given.get("architecture", Model.model_fields["architecture"].default)
                alike = difflib.get_close_matches(last, beside, n=1, cutoff=0.7)
                hint = f"; did you mean '{alike[0]}'?" if alike else ""
                return f"{said}, and model.architecture is {own}{hint}"
            ours = CALLED_ELSEWHERE.get(last, last)
            if near := difflib.get_close_matches(ours, beside, n=1, cutoff=0.5):
                return f"unknown key '{key}': did you mean '{near[0]}'?"
            hint = f"did you mean {elsewhere}? " if (elsewhere := _elsewhere(ours)) else ""
            return f"unknown key '{key}': {hint}known here: {', '.join(beside)}"
        case "missing":
            return f"'{key}' is missing: " + (f"for example {EXAMPLES[key]}" if key in EXAMPLES else "set it")
        case "model_type":
            keys = _keys_beside((*detail["loc"], ""), tree)
            return f"{key} = {_shown(detail['input'])} is not a section; its keys are {', '.join(keys)}"
        case "tuple_type":
            return f"{key} = {_shown(detail['input'])}: a list belongs here. Begin each item with '- '"
        case "dict_type":
            return f"{key} = {_shown(detail['input'])}: `key: value` lines belong here"
        case kind:
            said = detail["msg"]
            if kind == "literal_error":
                choices = re.findall(r"'([^']+)'", str(detail["ctx"]["expected"]))
                near = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.6)
                said += f"; did you mean '{near[0]}'?" if near else ""
            return f"{key} = {_shown(detail['input'])}: {said[:1].lower()}{said[1:]}"


def _printable(text: str) -> str:
    """The text for a message without quotes around it; characters that cannot be printed become escapes."""
    return text if text.isprintable() else repr(text)[1:-1]


def _shown(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST_SHOWN
    return short.repr(value)


def _keys_beside(loc: tuple[int | str, ...], tree: Mapping[str, object]) -> list[str]:
    """The keys of the section that holds the last part of `loc`."""
    section: type[pydantic.BaseModel] = RunConfig
    for part in loc[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    if section is Model:
        section = model_section(tree["model"]) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _elsewhere(name: str) -> str:
    """The keys with this name in other sections, those that are nested least: `'optimizer.lr'` for `lr`."""
    found = list(_keys_named(name))
    least = min((key.count(".") for key in found), default=0)
    return " or ".join(key for key in found if key.count(".") == least)


def _keys_named(name: str, section: type[pydantic.BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """The keys of all sections with this name: `optimizer.lr` for `lr`."""
    for own, field in section.model_fields.items():
        if own == name:
            yield f"'{prefix}{own}'"
        elif below := _section_in(field.annotation):
            place = "0." if typing.get_origin(field.annotation) is tuple else ""
            yield from _keys_named(name, below, f"{prefix}{own}.{place}")


def _section_in(annotation: object) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, pydantic.BaseModel) else None
    return next((found for part in typing.get_args(annotation) if (found := _section_in(part))), None)
