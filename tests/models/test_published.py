"""Checkpoints as they are published load by folder and by name, for each architecture."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from maskloom.config import MODELS
from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.models.architecture import longest_piece_of
from maskloom.models.build import build_model
from maskloom.models.warm_start import settle_architecture, tokenizer_of
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.resume import check_model
from tests.models.parity import bucket, logits_by_piece, make_rows
from tests.models.published import LAYOUTS, write_layout

each_layout = pytest.mark.parametrize("name", LAYOUTS)
LENGTHS = [[100], [7, 93], [30]]


@pytest.fixture(scope="module")
def published(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and Hugging Face's model, by name."""
    base = tmp_path_factory.mktemp("published")
    return {name: (base / name, write_layout(layout, documents, base / name)) for name, layout in LAYOUTS.items()}


def loaded(source: str, run_config: dict[str, Any], run: Path) -> tuple[Any, str, Tokenizer]:
    """As a run does it: the configuration names the checkpoint alone."""
    given = {key: value for key, value in run_config.items() if key != "tokenizer"}
    config = parse_config(given | {"model": {"init": source}}, "run.yaml")
    assert config.tokenizer == source
    tokenizer = tokenizer_of(config.tokenizer, config.model.init)
    described = check_model(run, None, config.model, tokenizer, config.seq_lens)
    model, line = build_model(settle_architecture(config.model), tokenizer, 0)
    assert longest_piece_of(described) == longest_piece_of(model.config)
    return model.eval(), line, tokenizer


@each_layout
def test_a_published_checkpoint_loads_by_its_folder(
    name: str, published: dict[str, tuple[Path, Any]], run_config: dict[str, Any], tmp_path: Path
) -> None:
    folder, theirs = published[name]
    layout = LAYOUTS[name]
    ours, line, tokenizer = loaded(str(folder), run_config, tmp_path)
    assert longest_piece_of(ours.config) == (8192 if "ModernBERT" in name else 512)
    ids = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id
    assert ids[:3] == (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id)
    assert tuple(map(tokenizer.token, ids)) == layout.roles
    assert ours.config.vocab_size == tokenizer.vocab_size + layout.spare_rows
    ignored = "roberta.pooler.*" if layout.more else "nothing"
    assert line.endswith(f"; ignored: {ignored}; newly initialised: nothing")
    assert (f"{layout.spare_rows} of its" in line) == (layout.spare_rows > 0)
    for weight, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[weight], tensor), weight
    rows = make_rows(LENGTHS, tokenizer, seq_len=100)
    batch = bucket(rows, tokenizer)
    expected = logits_by_piece(theirs, rows, LENGTHS)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], expected, atol=1e-5, rtol=0)


@each_layout
def test_another_padding_token_is_refused_if_positions_begin_behind_it(
    name: str, published: dict[str, tuple[Path, Any]], run_config: dict[str, Any], tmp_path: Path
) -> None:
    """As camembert-base-legacy: its config.json has 0, and its tokenizer 1."""
    folder, _ = published[name]
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tree = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(tree | {"pad_token_id": 0}))
    if "ModernBERT" in name:
        _, _, tokenizer = loaded(str(tmp_path), run_config, tmp_path / "run")
        assert tokenizer.pad_id == tree["pad_token_id"]
        return
    with pytest.raises(UserError) as error:
        loaded(str(tmp_path), run_config, tmp_path / "run")
    assert (
        f"model.init {tmp_path} was trained with positions that begin behind the padding token's id, 0. The "
        f"tokenizer {tmp_path / 'tokenizer.json'} pads with id 1" in str(error.value)
    )


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the Hub's answers a download needs."""

    REVISION = "0" * 40

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        files = sorted(self.folder.iterdir())
        if "/tree/" in name:
            listed = [{"type": "file", "path": each.name, "size": each.stat().st_size, "oid": "1"} for each in files]
            self._answer(json.dumps(listed).encode(), "application/json")
            return
        if name.startswith("/api/models/"):
            siblings = [{"rfilename": each.name} for each in files]
            model = "/".join(name.split("/")[3:5])
            self._answer(
                json.dumps({"id": model, "sha": self.REVISION, "siblings": siblings}).encode(), "application/json"
            )
            return
        file = self.folder / name.rpartition("/")[2]
        if "/resolve/" in name and file.is_file():
            self._answer(file.read_bytes(), "application/octet-stream")
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(body),
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            "X-Repo-Commit": self.REVISION,
        }
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A Hub on this machine. Any model's files are those of the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


@each_layout
def test_it_loads_by_its_name_on_the_hub(
    name: str,
    published: dict[str, tuple[Path, Any]],
    hub: Path,
    run_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder, theirs = published[name]
    for file in (*folder.iterdir(), Path(__file__)):
        (hub / file.name).symlink_to(file)
    ours, line, _ = loaded(f"somebody/{name}", run_config, tmp_path / "run")
    assert f"from somebody/{name}" in line
    for weight, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[weight], tensor), weight
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert fetched == {path.name for path in folder.iterdir()}  # and nothing that is of no use


def test_the_variable_for_the_hub_is_followed_and_a_name_can_be_extended(
    published: dict[str, tuple[Path, Any]],
    hub: Path,
    corpus_dir: Path,
    maskloom: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """As for a mirror: HF_ENDPOINT is in the environment of the command. The model then starts with more rows."""
    name = next(name for name, layout in LAYOUTS.items() if layout.description["model_type"] == "roberta")
    folder, theirs = published[name]
    for file in folder.iterdir():
        (hub / file.name).symlink_to(file)
    environment = {**os.environ, "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    arguments = (
        "tokenizer",
        "extend",
        "somebody/model",
        corpus_dir,
        tmp_path / "longer",
        "--words",
        3,
        "--min-count",
        1,
    )
    done = maskloom(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    longer = load_tokenizer(tmp_path / "longer")
    described = check_model(tmp_path / "run", None, MODELS["roberta"](init="somebody/model"), longer, {})
    assert described.vocab_size == max(longer.vocab_size, theirs.config.vocab_size)
    model, line = build_model(MODELS["roberta"](init="somebody/model"), longer, 0)
    assert f"{longer.vocab_size - load_tokenizer(folder).vocab_size} tokens more than" in line
    assert model.config.vocab_size == described.vocab_size


def test_each_architecture_but_bert_has_a_layout() -> None:
    assert {layout.description["model_type"] for layout in LAYOUTS.values()} == MODELS.keys() - {"bert"}
