"""What people write: YAML files, `key=value`, hostfiles."""

from __future__ import annotations

from pathlib import Path

from maskloom.config_file import apply_override, dump_config, load_config, parse_config
from maskloom.errors import UserError
from maskloom.launch.hostfile import as_hostfile, parse_hostfile, read_hostfile
from maskloom.plain_yaml import read_yaml
from tests.trees import tree_with

from .harness import fuzz

CONFIGS = Path(__file__).parents[2] / "configs"
FULL = dump_config(parse_config(tree_with(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}}), "seed"))
WORDS = (
    *b"true no ~ 1e3 0123 0x1F 1:40 2026-11-28 1_000 .inf << = *a # ' \" [ ] { } !!int phases seed run_dir from".split(),
    *(
        b"&a ",
        b" #",
        b"? ",
        b"- ",
        b": ",
        b"\t",
        b"|\n",
        b">\n",
        b"---\n",
        b"...\n",
        b"%YAML 1.1\n",
        b"data:\n  train: x\n",
    ),
    *("٣".encode(), "１２".encode(), b"\xc2\xa0", b"\xef\xbb\xbf", b"!!python/object/apply:os.system"),
)
KEYS = (
    "run_dir",
    "seed",
    "optimizer.lr",
    "phases.0.steps",
    "masking.protected",
    "data.train",
    "deepspeed.a",
    "engine",
    "from",
)
VALUES = ("runs/a #2", "12", "1e-4", "[a, 'b']", "{steps: 3}", "null", "", '"x"', "true", "https://host/x?a=b")


def is_shown(error: UserError) -> None:
    """A message has no character that a terminal would take for a command."""
    assert all(line.isprintable() for line in str(error).split("\n")), str(error)


def test_yaml_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        try:
            config = load_config(path)
        except UserError as error:
            is_shown(error)
            raise
        assert parse_config(read_yaml(dump_config(config), "dump"), "dump") == config

    seeds = [FULL.encode(), *(file.read_bytes() for file in sorted(CONFIGS.glob("*.yaml")))]
    fuzz(parse, seeds, WORDS, folder=tmp_path, inputs=250)


def test_overrides() -> None:
    def parse(data: bytes) -> None:
        tree = tree_with()
        try:
            apply_override(tree, data.decode(errors="surrogateescape"))
            parse_config(tree, "here")
        except UserError as error:
            is_shown(error)
            raise

    seeds = [f"{key}={value}".encode() for key in KEYS for value in VALUES]
    readable = []
    for seed in seeds:
        try:
            parse(seed)
        except UserError:
            continue
        readable.append(seed)
    assert len(readable) > len(KEYS)
    fuzz(parse, readable, WORDS, inputs=500)


def test_hostfiles(tmp_path: Path) -> None:
    path = tmp_path / "hosts"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        try:
            hosts = read_hostfile(path)
        except UserError as error:
            is_shown(error)
            raise
        assert parse_hostfile(as_hostfile(hosts), "again") == hosts
        assert all(host.slots >= 1 and host.name.isascii() and not host.name.startswith("-") for host in hosts)

    seeds = [b"node1 slots=8\nnode2 slots=8\n", b"# a\nada@node1.example.org slots=2 # b\n\n10.0.0.1 slots=1\n"]
    words = [
        b"slots=",
        b"-oProxyCommand=x",
        b"$(x)",
        b"`",
        b"@",
        b":22",
        b"::1",
        b"%h",
        "٣".encode(),
        b"\xc2\xa0",
        b"\t",
    ]
    fuzz(parse, seeds, words, folder=tmp_path)
