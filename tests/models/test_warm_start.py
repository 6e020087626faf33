"""What a run starts from: wrong kinds of models are found without their weights, and the right ones load under any name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from maskloom.config import Bert
from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.models.architecture import known
from maskloom.models.build import build_defined, build_model, save_definition
from maskloom.models.flops import Shape
from maskloom.models.masked_lm import MaskedLM
from maskloom.models.vocabulary import MOST_SPARE_ROWS
from maskloom.models.warm_start import check_init
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from tests.models.test_bert import bucket, hugging_face_inputs, make_rows, tiny_config

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A checkpoint of `BertForMaskedLM` with the tokenizer's vocabulary."""
    torch.manual_seed(2)
    BertForMaskedLM(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[Weights], Weights], **description: Any) -> None:
    """Change the weights and the config.json of a checkpoint."""
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, file)
    describe(folder, **description)


def describe(folder: Path, **description: Any) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | description))


def renamed(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {change(name): tensor for name, tensor in weights.items()}


def refusal(folder: Path, tokenizer: Tokenizer, **seq_lens: int) -> str:
    """Why it is refused without its weights; with them it is refused in the same words."""
    with pytest.raises(UserError) as error:
        check_init(str(folder), tokenizer, seq_lens)
    said = str(error.value)
    if not seq_lens:
        with pytest.raises(UserError) as again:
            build_model(Bert(init=str(folder)), tokenizer, 0)
        assert str(again.value) == said
    assert str(folder) in said
    assert said.isprintable()
    return said


def loaded(folder: Path, tokenizer: Tokenizer) -> tuple[MaskedLM, str]:
    check_init(str(folder), tokenizer, {"phases.0.seq_len": 64})
    return build_model(Bert(init=str(folder), hidden_dropout_prob=0.0), tokenizer, 0)


@pytest.fixture(scope="module")
def pretraining_dir(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Google's: with the head for the next sentence and a pooler."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("pretraining")
    BertForPreTraining(tiny_config(tokenizer.vocab_size)).save_pretrained(folder)
    return folder


class TestWarmStart:
    def test_what_is_not_needed_is_ignored_by_name(self, pretraining_dir: Path, tokenizer: Tokenizer) -> None:
        model, line = build_model(Bert(init=str(pretraining_dir)), tokenizer, 0)
        assert "\n" not in line
        ignored, fresh = line.split("; ")[-2:]
        assert "cls.seq_relationship" in ignored
        assert "bert.pooler" in ignored
        assert fresh == "newly initialised: nothing"
        source = BertForPreTraining.from_pretrained(pretraining_dir).state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, source[name]), name
            assert tensor.dtype == torch.float32

    def test_dropout_is_the_configurations(self, pretraining_dir: Path, tokenizer: Tokenizer) -> None:
        settings = Bert(init=str(pretraining_dir), hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5)
        layer = build_model(settings, tokenizer, 0)[0].bert.encoder.layer[0]
        assert (layer.output.dropout.p, layer.attention.self.dropout.p) == (0.25, 0.5)

    def test_what_is_lacking_is_newly_initialised_by_name(self, minilm_dir: Path) -> None:
        tokenizer = load_tokenizer(minilm_dir)
        model, line = build_model(Bert(init=str(minilm_dir)), tokenizer, 0)
        same, _ = build_model(Bert(init=str(minilm_dir)), tokenizer, 0)
        other, _ = build_model(Bert(init=str(minilm_dir)), tokenizer, 1)
        assert "\n" not in line
        ignored, fresh = line.split("; ")[-2:]
        assert "pooler" in ignored
        assert fresh == "newly initialised: cls.predictions.*"
        source = BertModel.from_pretrained(minilm_dir, add_pooling_layer=False).state_dict()
        for name, tensor in source.items():
            assert torch.equal(model.bert.state_dict()[name], tensor), name
        heads = [each.cls.predictions.transform.dense.weight for each in (model, same, other)]
        assert torch.equal(heads[0], heads[1])  # the new part follows from the seed
        assert not torch.equal(heads[0], heads[2])
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

    def test_another_vocabulary_is_refused(self, minilm_dir: Path, tokenizer: Tokenizer) -> None:
        with pytest.raises(UserError, match=rf"vocabulary of 30522, the tokenizer .* one of {tokenizer.vocab_size}"):
            build_model(Bert(init=str(minilm_dir)), tokenizer, 0)

    def test_a_shape_beside_init_is_refused(self, run_config: dict) -> None:
        run_config["model"] = {"init": "somewhere", "hidden_size": 32, "num_hidden_layers": 2}
        with pytest.raises(UserError, match="remove hidden_size, num_hidden_layers"):
            parse_config(run_config, "run.yaml")

    def test_another_kind_of_model_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        ElectraForMaskedLM(ElectraConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="is a 'electra' model"):
            build_model(Bert(init=str(tmp_path)), tokenizer, 0)

    def test_a_folder_without_a_checkpoint_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"model.init {tmp_path}"):
            build_model(Bert(init=str(tmp_path)), tokenizer, 0)

    def test_damaged_weights_are_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForMaskedLM(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(UserError, match=f"model.init {tmp_path} cannot be loaded"):
            build_model(Bert(init=str(tmp_path)), tokenizer, 0)

    def test_weights_of_another_shape_are_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForMaskedLM(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 40}))
        with pytest.raises(UserError, match=r"encoder\.layer\.0\.intermediate\.dense\.bias.*48.*40"):
            build_model(Bert(init=str(tmp_path)), tokenizer, 0)

    def test_an_encoder_that_is_not_all_there_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForMaskedLM(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
        with pytest.raises(UserError, match=r"lacks bert\.encoder"):
            build_model(Bert(init=str(tmp_path)), tokenizer, 0)


class TestNames:
    @pytest.mark.parametrize(
        "change",
        [
            lambda name: f"_orig_mod.{name}",
            lambda name: f"module.{name}",
            lambda name: f"module._orig_mod.{name}",
            lambda name: f"_orig_mod.module.module.{name}",
            lambda name: name.replace("bert.encoder.", "bert._orig_mod.encoder."),
            lambda name: name.replace(".attention.", "._checkpoint_wrapped_module.attention."),
            lambda name: f"_fsdp_wrapped_module.{name}",
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        ],
    )
    def test_wrapped_and_old_names_load(self, change: Callable[[str], str], folder: Path, tokenizer: Tokenizer) -> None:
        expected = BertForMaskedLM.from_pretrained(folder).state_dict()
        rewrite(folder, renamed(change))
        assert set(load_file(folder / "model.safetensors")).isdisjoint(expected) or "encoder" in change(
            "bert.encoder.x"
        )
        model, line = loaded(folder, tokenizer)
        assert line.endswith("ignored: nothing; newly initialised: nothing")
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name]), name

    def test_a_bare_encoder_loads(self, folder: Path, tokenizer: Tokenizer) -> None:
        expected = BertForMaskedLM.from_pretrained(folder).bert.state_dict()
        rewrite(
            folder, lambda weights: {n.removeprefix("bert."): t for n, t in weights.items() if n.startswith("bert.")}
        )
        model, line = loaded(folder, tokenizer)
        assert line.endswith("newly initialised: cls.predictions.*")
        for name, tensor in expected.items():
            assert torch.equal(model.bert.state_dict()[name], tensor), name

    def test_a_name_twice_is_refused(self, folder: Path, tokenizer: Tokenizer) -> None:
        name = "bert.embeddings.LayerNorm.weight"
        rewrite(folder, lambda weights: weights | {f"module.{name}": weights[name]})
        assert f"holds {name} twice" in refusal(folder, tokenizer)

    def test_heads_and_counters_are_left(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForSequenceClassification(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path)
        rewrite(tmp_path, lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(64)[None]})
        _, line = loaded(tmp_path, tokenizer)
        assert line.endswith("ignored: bert.pooler.*, classifier.*; newly initialised: cls.predictions.*")

    @pytest.mark.parametrize(
        "name",
        [
            "bert.encoder.layer.1.attention.self.distance_embedding.weight",
            "bert.embeddings.norm.weight",
            "bert.encoder.layer.0.intermediate.gate.weight",
            "bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
            "cls.predictions.transform.gate.weight",
        ],
    )
    def test_a_weight_that_bert_has_not_is_refused(self, name: str, folder: Path, tokenizer: Tokenizer) -> None:
        rewrite(folder, lambda weights: weights | {name: torch.zeros(3, 4)})
        assert f"such as {name}: it is another architecture" in refusal(folder, tokenizer)

    @pytest.mark.parametrize("layers", [0, 1])
    def test_more_layers_than_it_says_are_refused(self, layers: int, folder: Path, tokenizer: Tokenizer) -> None:
        trained = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        describe(folder, num_hidden_layers=trained - 1)
        if layers:  # as a weight of a further one alone
            describe(folder, num_hidden_layers=trained)
            name = f"bert.encoder.layer.{trained}.output.dense.bias"
            rewrite(folder, lambda weights: weights | {name: torch.zeros(4)})
        said = refusal(folder, tokenizer)
        assert f"weights of more layers than the {trained - 1 + layers} that its config.json names" in said
        assert f"such as bert.encoder.layer.{trained - 1 + layers}." in said
        assert "another architecture" not in said

    @pytest.mark.parametrize("prefix", ["model.", "_forward_module.", "_forward_module.module.", "text_encoder.x."])
    @pytest.mark.parametrize("extra", ["classifier.weight", "other.bert.pooler.dense.weight"])
    def test_names_of_bert_in_another_module_load(
        self, prefix: str, extra: str, folder: Path, tokenizer: Tokenizer
    ) -> None:
        weights = load_file(folder / "model.safetensors")
        rewrite(folder, lambda weights: {f"{prefix}{n}": t for n, t in weights.items()} | {extra: torch.ones(2)})
        model, line = loaded(folder, tokenizer)
        assert extra.rpartition(".")[0].split(".")[0] in line.split("ignored: ")[1].split("; ")[0]
        for name, tensor in weights.items():
            assert torch.equal(model.state_dict()[name], tensor), name

    @pytest.mark.parametrize("prefix", ["model.", "_forward_module.model."])
    def test_names_without_bert_load_in_a_wrapper(self, prefix: str, folder: Path, tokenizer: Tokenizer) -> None:
        weights = load_file(folder / "model.safetensors")
        rewrite(folder, renamed(lambda name: prefix + name.removeprefix("bert.")))
        model, _ = loaded(folder, tokenizer)
        for name, tensor in weights.items():
            assert torch.equal(model.state_dict()[name], tensor), name

    def test_two_encoders_are_refused(self, folder: Path, tokenizer: Tokenizer) -> None:
        rewrite(folder, lambda weights: {f"{side}.{n}": t for n, t in weights.items() for side in ("query", "text")})
        assert "holds none of the weights of a 'bert' model. Its weights are query.bert.*" in refusal(folder, tokenizer)

    def test_names_of_another_model_are_listed(self, folder: Path, tokenizer: Tokenizer) -> None:
        rewrite(folder, renamed(lambda name: f"base_model.model.{name.removeprefix('bert.')}"))
        assert "holds none of the weights of a 'bert' model. Its weights are base_model.model.*" in refusal(
            folder, tokenizer
        )


class TestWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize(
        "name",
        [
            "bert.embeddings.word_embeddings.weight",
            "bert.encoder.layer.1.output.LayerNorm.bias",
            "cls.predictions.bias",
        ],
    )
    def test_what_is_not_finite_is_refused(self, name: str, value: float, folder: Path, tokenizer: Tokenizer) -> None:
        def spoil(weights: Weights) -> Weights:
            weights[name].view(-1)[-1] = value
            return weights

        rewrite(folder, spoil)
        with pytest.raises(UserError, match=rf"model\.init {folder}: {name} holds values that are not finite"):
            build_model(Bert(init=str(folder)), tokenizer, 0)

    def test_of_a_head_that_is_not_used_they_may_be(self, folder: Path, tokenizer: Tokenizer) -> None:
        rewrite(folder, lambda weights: weights | {"classifier.weight": torch.full((2, 32), torch.nan)})
        assert "ignored: classifier.*" in loaded(folder, tokenizer)[1]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_floats_become_fp32(self, dtype: torch.dtype, folder: Path, tokenizer: Tokenizer) -> None:
        expected = {name: tensor.to(dtype).float() for name, tensor in load_file(folder / "model.safetensors").items()}
        rewrite(folder, lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})
        model, _ = loaded(folder, tokenizer)
        for name, tensor in expected.items():
            assert torch.equal(model.state_dict()[name], tensor), name

    def test_a_double_beyond_fp32_is_not_finite(self, folder: Path, tokenizer: Tokenizer) -> None:
        rewrite(
            folder,
            lambda weights: (
                weights | {"cls.predictions.bias": torch.full((tokenizer.vocab_size,), 1e300, dtype=torch.float64)}
            ),
        )
        with pytest.raises(UserError, match=r"cls\.predictions\.bias holds values that are not finite"):
            build_model(Bert(init=str(folder)), tokenizer, 0)

    def test_whole_numbers_are_refused(self, folder: Path, tokenizer: Tokenizer) -> None:
        name = "bert.encoder.layer.0.output.dense.weight"
        rewrite(folder, lambda weights: weights | {name: weights[name].to(torch.int8)})
        assert "holds weights as I8: take a checkpoint that is not quantised" in refusal(folder, tokenizer)

    def test_a_tied_weight_that_differs_is_refused(self, folder: Path, tokenizer: Tokenizer) -> None:
        decoder = "cls.predictions.decoder.weight"
        own = torch.randn(tokenizer.vocab_size, 32)
        rewrite(folder, lambda weights: weights | {decoder: own})
        with pytest.raises(
            UserError, match=f"{decoder} differs from .*: if they are two weights, set tie_word_embeddings"
        ):
            build_model(Bert(init=str(folder)), tokenizer, 0)
        describe(folder, tie_word_embeddings=False)
        model, _ = loaded(folder, tokenizer)
        assert torch.equal(model.cls.predictions.decoder.weight, own)
        describe(folder, tie_word_embeddings=True)
        rewrite(folder, lambda weights: weights | {decoder: weights["bert.embeddings.word_embeddings.weight"]})
        model, _ = loaded(folder, tokenizer)
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("kept", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
    def test_the_bias_has_two_names(self, kept: str, tied: bool, folder: Path, tokenizer: Tokenizer) -> None:
        """Files of transformers 4 have one of them, and mean both."""
        bias = torch.randn(tokenizer.vocab_size)
        names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
        rewrite(
            folder,
            lambda weights: {**{n: t for n, t in weights.items() if n not in names}, kept: bias},
            tie_word_embeddings=tied,
        )
        model, _ = loaded(folder, tokenizer)
        assert torch.equal(model.cls.predictions.decoder.bias, bias)

    def test_an_untied_decoder_predicts_as_hugging_faces(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        torch.manual_seed(3)
        theirs = BertForMaskedLM(tiny_config(tokenizer.vocab_size, tie_word_embeddings=False)).eval()
        theirs.save_pretrained(tmp_path)
        rows = make_rows([[32], [20]], tokenizer)
        batch = bucket(rows, tokenizer)
        with torch.no_grad():
            expected = theirs(**hugging_face_inputs(rows, tokenizer)).logits[torch.from_numpy(rows.chosen)]
            logits = loaded(tmp_path, tokenizer)[0].eval().masked_logits(batch)[batch.weights > 0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickles_of_tensors_load(self, legacy: bool, folder: Path, tokenizer: Tokenizer) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        model, _ = loaded(folder, tokenizer)
        for name, tensor in weights.items():
            assert torch.equal(model.state_dict()[name], tensor), name

    @pytest.mark.filterwarnings("ignore")  # such tensors are old or new for torch
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (torch.Tensor.to_sparse, "is a sparse tensor (sparse_coo)"),
            (torch.Tensor.to_sparse_csr, "is a sparse tensor (sparse_csr)"),
            (
                lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
                "pytorch_model.bin holds quantised tensors: take a checkpoint that is not quantised",
            ),
        ],
    )
    def test_a_pickle_of_other_tensors_is_refused(
        self, change: Callable[[torch.Tensor], torch.Tensor], said: str, folder: Path, tokenizer: Tokenizer
    ) -> None:
        name = "bert.encoder.layer.0.output.dense.weight"
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights | {name: change(weights[name])}, folder / "pytorch_model.bin")
        found = refusal(folder, tokenizer)
        assert said in found
        assert name in found or "quantised" in said

    @pytest.mark.parametrize("value", [{"state_dict": {}}, [torch.ones(2)], nn.Linear(2, 2).state_dict, 3])
    def test_another_pickle_is_refused(self, value: Any, folder: Path, tokenizer: Tokenizer) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin")
        refusal(folder, tokenizer)


class TestVocabulary:
    @pytest.mark.parametrize("spare", [1, 6, MOST_SPARE_ROWS - 1])
    def test_a_padded_one_loads(self, spare: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
        """30,528 rows for 30,522 ids: as Hugging Face has it, all rows take part in the softmax."""
        rows = tokenizer.vocab_size + spare
        torch.manual_seed(4)
        theirs = BertForMaskedLM(tiny_config(rows)).eval()
        theirs.save_pretrained(tmp_path)
        model, line = loaded(tmp_path, tokenizer)
        assert f"{spare} of its {rows:,} rows are beyond the tokenizer's {tokenizer.vocab_size:,} ids" in line
        held = make_rows([[32], [20]], tokenizer)
        batch, inputs = bucket(held, tokenizer), hugging_face_inputs(held, tokenizer)
        output = theirs(**inputs)
        loss, _ = model(batch)
        torch.testing.assert_close(loss / batch.weights.sum(), output.loss, atol=1e-5, rtol=0)
        assert model.masked_logits(batch).shape[1] == rows
        model.cls.predictions.decoder.alignment = 64  # as on a GPU
        aligned, _ = model(batch)
        torch.testing.assert_close(aligned, loss, atol=1e-5, rtol=1e-6)
        assert model.masked_logits(batch).shape[1] == rows
        assert Shape.of(model.config).head == 32**2 + 32 * rows
        assert (tokenizer.random_ids < tokenizer.vocab_size).all()
        save_definition(model, tokenizer, tmp_path / "run")
        again = build_defined(tmp_path / "run")
        again.load_state_dict(model.state_dict())
        assert again.config.vocab_size == rows

    def test_many_rows_more_are_no_padding(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForMaskedLM(tiny_config(tokenizer.vocab_size + MOST_SPARE_ROWS)).save_pretrained(tmp_path)
        assert "use the checkpoint's own tokenizer" in refusal(tmp_path, tokenizer)
        tokenizer.save(tmp_path / "tokenizer.json")  # which it is
        assert f"{MOST_SPARE_ROWS} of its" in loaded(tmp_path, tokenizer)[1]

    def test_one_too_small_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        BertForMaskedLM(tiny_config(tokenizer.vocab_size - 2)).save_pretrained(tmp_path)
        said = refusal(tmp_path, tokenizer)
        assert (
            f"vocabulary of {tokenizer.vocab_size - 2}, the tokenizer {tokenizer.source} one of {tokenizer.vocab_size}"
            in said
        )
        assert "its last 2 ids would have no embedding. Use the checkpoint's own tokenizer, one that" in said
        assert f"resize_token_embeddings({tokenizer.vocab_size})" in said

    def test_its_own_tokenizer_decides(self, folder: Path, tokenizer: Tokenizer) -> None:
        from tests.conftest import same_tokenizer

        other = same_tokenizer(["quite another text about gardens and their weeds"] * 3, tokenizer.vocab_size)
        assert other.vocab_size < tokenizer.vocab_size
        other.save(folder / "tokenizer.json")
        assert f"The checkpoint's own has {other.vocab_size} ids: set tokenizer={folder}" in refusal(folder, tokenizer)
        tree = json.loads(tokenizer.definition)
        vocabulary = tree["model"]["vocab"]
        last = max(vocabulary, key=vocabulary.__getitem__)
        swapped = {("zebra" if token == last else token): number for token, number in vocabulary.items()}
        (folder / "tokenizer.json").write_text(json.dumps(tree | {"model": tree["model"] | {"vocab": swapped}}))
        line = loaded(folder, tokenizer)[1]
        assert f"1 of {tokenizer.vocab_size:,} ids are other tokens in its own tokenizer" in line
        plain = sorted(vocabulary, key=vocabulary.__getitem__)[5:]
        turned = {token: vocabulary[other] for token, other in zip(plain, reversed(plain), strict=True)}
        (folder / "tokenizer.json").write_text(
            json.dumps(tree | {"model": tree["model"] | {"vocab": vocabulary | turned}})
        )
        assert " are other tokens in its own tokenizer: set " in refusal(folder, tokenizer)

    def test_the_padding_token_is_the_tokenizers(self, folder: Path, tokenizer: Tokenizer) -> None:
        describe(folder, pad_token_id=7)
        other = copy.copy(tokenizer)
        other.pad_id = 3
        model, _ = loaded(folder, other)
        assert model.bert.embeddings.word_embeddings.padding_idx == model.config.pad_token_id == 3


class TestWrongKinds:
    """Found by `check_init`, which no rank needs to be started for."""

    def other(self, kind: str, vocab_size: int) -> nn.Module:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        if kind == "electra":
            return ElectraForMaskedLM(ElectraConfig(vocab_size=vocab_size, **shape))
        if kind == "distilbert":
            return DistilBertForMaskedLM(
                DistilBertConfig(vocab_size=vocab_size, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
            )
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=1, n_head=2))

    @pytest.mark.parametrize("kind", ["electra", "distilbert", "gpt2"])
    def test_another_architecture(self, kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
        self.other(kind, tokenizer.vocab_size).save_pretrained(tmp_path)
        assert f"is a '{kind}' model: only {known()} are supported" in refusal(tmp_path, tokenizer)
        describe(tmp_path, **json.loads(json.dumps(tiny_config(tokenizer.vocab_size).to_dict())))  # that lies
        assert "holds none of the weights of a 'bert' model. Its weights are " in refusal(tmp_path, tokenizer)

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            (["adapter_config.json", "adapter_model.safetensors"], "it is an adapter (PEFT, LoRA) without its model"),
            (["model-q8.gguf"], "its weights are in GGUF alone"),
            (["onnx/model.onnx", "tokenizer.json"], "its weights are in ONNX alone"),
            (["model.onnx"], "its weights are in ONNX alone"),
            (["tf_model.h5"], "its weights are in TensorFlow alone"),
            (["flax_model.msgpack"], "its weights are in Flax alone"),
            (
                ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"],
                "its weights are in TensorFlow or Lightning",
            ),
            (["model-00001-of-00002.safetensors"], "no model.safetensors.index.json"),
            (["0_Transformer/config.json", "modules.json"], "0_Transformer: name that folder"),
            (["checkpoint-500/config.json", "checkpoint-900/config.json"], "checkpoint-500 or "),
            (["config.yaml", "checkpoints/x"], "it is a run of maskloom"),
            (["readme.txt"], "it holds no weights"),
        ],
    )
    @pytest.mark.parametrize("is_described", [True, False])
    def test_a_folder_of_something_else(
        self, files: list[str], said: str, is_described: bool, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("{}")
        if is_described:
            tiny_config(tokenizer.vocab_size).save_pretrained(tmp_path)
        assert said in refusal(tmp_path, tokenizer)

    def test_paths_that_are_no_folder(self, folder: Path, tokenizer: Tokenizer) -> None:
        assert "it is a file. Name the folder" in refusal(folder / "model.safetensors", tokenizer)
        assert "there is no such folder" in refusal(folder / "nowhere", tokenizer)
        assert "there is no such folder" in refusal(folder / ("x" * 5000), tokenizer)

    def test_positions_too_few(self, folder: Path, tokenizer: Tokenizer) -> None:
        said = refusal(folder, tokenizer, **{"phases.0.seq_len": 64, "phases.1.seq_len": 65, "evaluation.seq_len": 128})
        assert f"phases.1.seq_len 65, evaluation.seq_len 128: more than the 64 positions of model.init {folder}" in said

    def test_a_missing_shard(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        model = BertForMaskedLM(tiny_config(tokenizer.vocab_size))
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        files = sorted(tmp_path.glob("model-*.safetensors"))
        assert len(files) > 2
        again, _ = loaded(tmp_path, tokenizer)
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        files[1].rename(tmp_path / "aside")
        said = refusal(tmp_path, tokenizer)
        assert (
            f"1 of {len(files)} files that model.safetensors.index.json lists are missing, such as '{files[1].name}'"
            in said
        )
        shutil.copy(files[0], files[1])
        assert "is in both" in refusal(tmp_path, tokenizer)

    @pytest.mark.parametrize(
        "index",
        [
            "",
            "[]",
            "{}",
            '{"weight_map": {}}',
            '{"weight_map": {"a": "../model.safetensors"}}',
            '{"weight_map": {"a": 3}}',
            '{"weight_map": [1]}',
            '{"weight_map": {"a": "/etc/passwd"}}',
            "[" * 100_000,
        ],
    )
    def test_a_damaged_index(self, index: str, folder: Path, tokenizer: Tokenizer) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)
        assert "model.safetensors.index.json is damaged" in refusal(folder, tokenizer)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_hidden_layers": 10**9},
            {"hidden_size": 10**8},
            {"vocab_size": 2**31 - 1},
            {"intermediate_size": 10**9},
            {"max_position_embeddings": 10**9},
            {"num_hidden_layers": 10**8, "hidden_size": 4096, "intermediate_size": 16384},
        ],
    )
    def test_a_huge_model_is_refused_before_there_is_memory_for_it(
        self, change: dict[str, int], folder: Path, tokenizer: Tokenizer
    ) -> None:
        from tests.fuzz.harness import guarded

        describe(folder, **change)
        with guarded(memory_bytes=64 << 20), pytest.raises(UserError):
            check_init(str(folder), tokenizer, {})
        refusal(folder, tokenizer)
