"""Held-out figures: every document once, the same for any number of ranks and any bucket; the entropy by hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.implementations import BertWordPieceTokenizer

from maskloom.config import Bert, Evaluation, Masking
from maskloom.data.batch import MicroBatch
from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import index_tars
from maskloom.data.masking import MaskRule
from maskloom.data.rows import Rows, count_text_tokens
from maskloom.data.stream import held_out_rows
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from maskloom.train.evaluation import evaluate, unigram_entropy

CPU = torch.device("cpu")
RULE = MaskRule(0.15)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that share a busy machine's cores wait for each other at every small product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["a split of its own", "a split by hash"])
def index(request: pytest.FixtureRequest, documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A corpus with several blocks of held-out documents: in shards of theirs, or among the others."""
    folder = tmp_path_factory.mktemp("held-out")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    by_hash = request.param == "a split by hash"
    options = Options(val_fraction=0.0 if by_hash else 0.3, block_bytes=2048)
    index, _ = write_shards([str(folder / "text.jsonl")], folder / "shards", options)
    if by_hash:
        tars = sorted((folder / "shards").glob("*.tar"))
        index = index_tars(tars, folder / "index", block_bytes=2048, text_key="text", fraction=0.3)
    assert len(index.held_out_blocks) >= 3
    return index


@pytest.fixture(scope="module")
def held_out(documents: list[str], index: Index) -> list[str]:
    """The held-out documents: those given that no training block holds."""
    trained = {text for block in index.train_blocks for text in index.documents(int(block), "train")}
    found = [text for text in documents if text.strip() not in {text.strip() for text in trained}]
    assert 0 < len(found) < len(documents)
    return found


def all_rows(index: Index, tokenizer: Tokenizer, seq_len: int, world: World) -> Rows:
    return Rows.concatenate(list(held_out_rows(index, tokenizer, seq_len, RULE, world)))


def pieces_of(rows: Rows, tokenizer: Tokenizer) -> Counter[tuple[int, ...]]:
    """The pieces' text tokens: what stands between each [CLS] and its [SEP]."""
    found: Counter[tuple[int, ...]] = Counter()
    for row in rows.tokens:
        begins, ends = (np.flatnonzero(row == token) for token in (tokenizer.cls_id, tokenizer.sep_id))
        found.update(tuple(row[begin + 1 : end].tolist()) for begin, end in zip(begins, ends, strict=True))
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_held_out_document_is_read_once(
    size: int, index: Index, tokenizer: Tokenizer, held_out: list[str]
) -> None:
    encoded = tokenizer.encode(held_out)
    seq_len = max(map(len, encoded)) + 2  # so that no document is cut
    found: Counter[tuple[int, ...]] = Counter()
    for rank in range(size):
        for rows in held_out_rows(index, tokenizer, seq_len, RULE, World(rank, size)):
            found += pieces_of(rows, tokenizer)
    assert found == Counter(tuple(ids.tolist()) for ids in encoded)


@pytest.mark.parametrize("seq_len", [8, 32, 128])
def test_cut_documents_keep_every_token(seq_len: int, index: Index, tokenizer: Tokenizer, held_out: list[str]) -> None:
    rows = all_rows(index, tokenizer, seq_len, World())
    assert count_text_tokens(rows, tokenizer) == sum(map(len, tokenizer.encode(held_out)))


def test_masks_follow_from_the_corpus_alone(index: Index, tokenizer: Tokenizer) -> None:
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        digest = hashlib.sha256()
        all_rows(index, tokenizer, 32, World()).update(digest)
        digests.add(digest.hexdigest())
    assert len(digests) == 1


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> MaskedLM:
    settings = Bert(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    return build_model(settings, tokenizer, 1)[0].eval()


def sums(figures: dict[str, float]) -> np.ndarray:
    """Loss, hits and tokens, which add up over ranks."""
    tokens = figures["evaluation_tokens"]
    return np.array([figures["evaluation_loss"] * tokens, figures["evaluation_accuracy"] * tokens, tokens])


def test_ranks_add_up_to_one(index: Index, tokenizer: Tokenizer, model: MaskedLM) -> None:
    settings = Evaluation(seq_len=64, micro_batch_rows=4)
    alone = evaluate(model, [index], tokenizer, settings, RULE, CPU, World())
    parts = [evaluate(model, [index], tokenizer, settings, RULE, CPU, World(rank, 2)) for rank in range(2)]
    assert all(part["evaluation_tokens"] for part in parts)
    np.testing.assert_allclose(sum(map(sums, parts)), sums(alone), rtol=1e-5)
    assert alone["evaluation_perplexity"] == pytest.approx(math.exp(alone["evaluation_loss"]))


def test_the_bucket_does_not_matter(index: Index, tokenizer: Tokenizer, model: MaskedLM) -> None:
    figures = [
        sums(evaluate(model, [index], tokenizer, Evaluation(seq_len=64, micro_batch_rows=size), RULE, CPU, World()))
        for size in (3, 7, 64)
    ]
    for other in figures[1:]:
        np.testing.assert_allclose(other, figures[0], rtol=1e-5)


def test_the_mean_is_over_predicted_tokens(index: Index, tokenizer: Tokenizer) -> None:
    """A model whose loss is 2 nats and that hits one token a micro-batch: figures that follow from the rows alone."""
    rows = all_rows(index, tokenizer, 32, World())
    maskable = tokenizer.is_maskable[rows.tokens].sum(axis=1)
    tokens = int(RULE.count(maskable).sum())
    micro_batches = -(-len(rows) // 4)

    def forward(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * batch.weights.sum(), torch.tensor(1)

    figures = evaluate(forward, [index], tokenizer, Evaluation(seq_len=32, micro_batch_rows=4), RULE, CPU, World())
    assert figures == {
        "evaluation_loss": 2.0,
        "evaluation_perplexity": pytest.approx(math.exp(2.0)),
        "evaluation_accuracy": pytest.approx(micro_batches / tokens),
        "evaluation_tokens": tokens,
    }


def test_unigram_entropy_by_hand(tmp_path: Path) -> None:
    """Frequencies 1/2, 1/4, 1/4 have an entropy of 3/2 ln 2; what the vocabulary lacks is never predicted."""
    words = ["river", "tree", "stone"]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}
    BertWordPieceTokenizer(vocab=vocabulary).save(str(tmp_path / "tokenizer.json"))
    texts = ["river tree river stone", "tree unheard river", "stone river"]
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    index, _ = write_shards([str(source)], tmp_path / "shards", Options(val_fraction=0.0))
    tokenizer = load_tokenizer(tmp_path)
    assert unigram_entropy([index], tokenizer, RULE) == pytest.approx(1.5 * math.log(2))
    protects = MaskRule(0.15, protected=(tokenizer.vocabulary["river"],))  # 1/2 and 1/2 are left
    assert unigram_entropy([index], tokenizer, protects) == pytest.approx(math.log(2))


PROTECTED = ["the", "a", "."]


def test_what_a_run_protects_is_neither_predicted_nor_drawn_in_its_evaluation(
    index: Index, tokenizer: Tokenizer
) -> None:
    masking = Masking(rate=0.4, unit="whole_word", random_share=0.5, mask_share=0.3, protected=tuple(PROTECTED))
    rule = MaskRule.held_out(masking, 0.9, tokenizer)
    ids = sorted(tokenizer.vocabulary[token] for token in PROTECTED)
    assert rule == MaskRule(0.9, protected=tuple(ids))  # single tokens, 80 / 10 / 10: the evaluation's own
    seen, predicted, given = set(), set(), set()

    def forward(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        weights = batch.weights > 0
        predicted.update(batch.targets[weights].tolist())
        given.update(batch.input_ids[batch.masked_index[weights]].tolist())
        seen.update(batch.input_ids.tolist())
        return batch.weights.sum(), torch.tensor(0)

    evaluate(forward, [index], tokenizer, Evaluation(seq_len=64, mask_rate=0.9), rule, CPU, World())
    assert set(ids) <= seen
    assert len(predicted) > 20
    assert not set(ids) & (predicted | given)


def test_without_protected_tokens_the_rule_is_that_of_the_rate_alone(tokenizer: Tokenizer) -> None:
    assert MaskRule.held_out(Masking(rate=0.4, unit="span", draw="bernoulli"), 0.15, tokenizer) == RULE
