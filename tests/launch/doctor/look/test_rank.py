"""What a rank would meet in its corpora."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from maskloom.config_file import load_config
from maskloom.launch.doctor.facts import Request
from maskloom.launch.doctor.look.rank import chosen_blocks, count_blocks, look_at_corpora


def test_blocks_are_the_first_the_last_and_others_from_host_to_host(corpus_dir: Path) -> None:
    from maskloom.data.index.loading import load_index

    index = load_index(corpus_dir)
    blocks = count_blocks(index)
    assert chosen_blocks(index, Request(blocks=blocks)) == list(range(blocks))
    one, other = (chosen_blocks(index, Request(number=number, blocks=6)) for number in (0, 1))
    assert one != other
    assert len(set(one)) == len(set(other)) == 6
    assert {0, blocks - 1} <= set(one) & set(other)


def test_damaged_and_missing_shards(
    corpus_dir: Path, run_config: dict, write_config: Callable[[dict], Path], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(corpus_dir, shards)
    run_config["data"]["train"] = str(shards)
    config = load_config(write_config(run_config))
    skips = load_config(write_config(run_config), ["data.on_bad_data=skip"])
    first, *_, last = sorted(shards.glob("*.tar"))
    with first.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff" * 64)
    (damaged,) = look_at_corpora(config, Request())
    assert first.name in str(damaged.fault)
    assert not damaged.is_skipped
    (passed,) = look_at_corpora(skips, Request())
    assert passed.is_skipped
    last.unlink()
    (missing,) = look_at_corpora(config, Request())
    assert last.name in str(missing.fault)
    assert missing.digest is None
