"""Small folders that look like the checkpoints that people start from: their config.json, tokenizer and names of weights.

What config.json says is what the published one says, but for the sizes and the ids of tokens at the end of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    **SIZES,
}
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "model_type": "roberta",
    **BASE,
}
XLM_ROBERTA = {
    "architectures": ["XLMRobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "model_type": "xlm-roberta",
    "output_past": True,
    "position_embedding_type": "absolute",
    "transformers_version": "4.17.0.dev0",
    "use_cache": True,
    **BASE,
}
CAMEMBERT = {
    "architectures": ["CamembertForMaskedLM"],
    "bos_token_id": 5,
    "eos_token_id": 6,
    "model_type": "camembert",
    "output_past": True,
    **BASE,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "position_embedding_type": "absolute",
    "repad_logits_with_grad": False,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    **SIZES,
}


def _byte_level(documents: list[str], specials: list[str], pattern: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    return tokenizer


def roberta_tokenizer(documents: list[str]) -> Tokenizer:
    """Special tokens first, the mask last; BPE over bytes."""
    tokenizer = _byte_level(documents, ["<s>", "<pad>", "</s>", "<unk>"], True)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def modernbert_tokenizer(documents: list[str]) -> Tokenizer:
    """Special tokens behind the text's, with spare ones at the end."""
    tokenizer = _byte_level(documents, [], True)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)])
    tokenizer.add_tokens([AddedToken(f"[unused{number}]", normalized=False) for number in range(3)])
    _template(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _unigram(documents: list[str], specials: list[str], unk_id: int) -> Tokenizer:
    first = Tokenizer(models.Unigram())
    first.pre_tokenizer = pre_tokenizers.Metaspace()
    first.train_from_iterator(documents, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>"))
    learned = [tuple(piece) for piece in json.loads(first.to_str())["model"]["vocab"] if piece[0] != "<unk>"]
    tokenizer = Tokenizer(models.Unigram([(each, 0.0) for each in specials] + learned + [("<mask>", 0.0)], unk_id))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*dict.fromkeys(specials), AddedToken("<mask>", lstrip=True)])
    _template(tokenizer, "<s>", "</s>")
    return tokenizer


def xlm_roberta_tokenizer(documents: list[str]) -> Tokenizer:
    """A Unigram model with fairseq's four tokens before its own."""
    return _unigram(documents, ["<s>", "<pad>", "</s>", "<unk>"], 3)


def camembert_tokenizer(documents: list[str]) -> Tokenizer:
    """As XLM-R's, but four of fairseq's tokens are names without a use: the roles follow behind them."""
    return _unigram(documents, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"], 3)


def _template(tokenizer: Tokenizer, first: str, last: str) -> None:
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}", special_tokens=ends
    )


class Layout(NamedTuple):
    """A published checkpoint."""

    description: dict[str, Any]
    tokenizer: Callable[[list[str]], Tokenizer]
    roles: tuple[str, ...]
    """What begins and ends a text, the padding token, the mask."""
    spare_rows: int
    """Rows of the embeddings beyond the tokenizer's ids."""
    pickled: bool
    """Whether its weights are a pickle."""
    more: tuple[tuple[str, tuple[int, ...]], ...]
    """Names and shapes of weights that a model for masked tokens does not have."""


D = SIZES["hidden_size"]
POOLER = (("roberta.pooler.dense.weight", (D, D)), ("roberta.pooler.dense.bias", (D,)))
FAIRSEQ = ("<s>", "</s>", "<pad>", "<mask>")
LAYOUTS = {
    "roberta-base": Layout(ROBERTA, roberta_tokenizer, FAIRSEQ, 0, False, POOLER),
    "xlm-roberta-base": Layout(XLM_ROBERTA, xlm_roberta_tokenizer, FAIRSEQ, 0, False, POOLER),
    "camembert-base": Layout(CAMEMBERT, camembert_tokenizer, FAIRSEQ, 0, True, POOLER),
    "ModernBERT-base": Layout(MODERNBERT, modernbert_tokenizer, ("[CLS]", "[SEP]", "[PAD]", "[MASK]"), 60, False, ()),
}


def write_layout(layout: Layout, documents: list[str], folder: Path) -> Any:
    """Write such a folder. Returns Hugging Face's model with its weights, in evaluation."""
    folder.mkdir(parents=True)
    tokenizer = layout.tokenizer(documents)
    tokenizer.save(str(folder / "tokenizer.json"))
    first, last, pad = map(tokenizer.token_to_id, layout.roles[:3])
    ids = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": pad}
    tree = layout.description | {"vocab_size": tokenizer.get_vocab_size() + layout.spare_rows} | ids
    if tree["model_type"] == "modernbert":
        tree |= {"cls_token_id": first, "sep_token_id": last}
        roles = dict(zip(("cls_token", "sep_token", "pad_token", "mask_token"), layout.roles, strict=True))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **roles}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        assert (tree["pad_token_id"], tree["bos_token_id"]) == (1, layout.description["bos_token_id"])
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    (folder / "config.json").write_text(json.dumps(tree, indent=2))
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights |= {name: torch.randn(shape) for name, shape in layout.more}
    if layout.more:  # files of transformers 4 have them
        weights["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    if layout.pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model
