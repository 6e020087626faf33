"""FLOPs by formula, beside torch's counter and what others published; peaks by name and by measurement."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import BertConfig, ModernBertConfig, PretrainedConfig, RobertaConfig

from maskloom.data.batch import MicroBatch
from maskloom.data.rows import count_pairs
from maskloom.models.architecture import architecture_of
from maskloom.models.flops import Shape, measured_flops, peak_flops, peak_of, training_flops
from maskloom.models.masked_lm import new_model
from maskloom.models.outline import parameters_of


def bert(layers: int, hidden: int, intermediate: int, vocabulary: int) -> Shape:
    """The shape of a BERT, by hand."""
    matrices = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    return Shape(matrices, hidden, hidden**2 + hidden * vocabulary, ((None, layers),))


BASE, LARGE = bert(12, 768, 3072, 30522), bert(24, 1024, 4096, 30522)
ROWS, SEQ_LEN = 2, 16


def small_config(intermediate: int) -> BertConfig:
    """A vocabulary of whole multiples of 64, which nothing has to pad."""
    return BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=intermediate,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )


def small_modern_config(**more: object) -> ModernBertConfig:
    """Three layers, of which two have a window; gated feed-forward layers. Ids of tokens within the vocabulary."""
    shape = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"intermediate_size": 96, "local_attention": 8, "global_attn_every_n_layers": 3, "pad_token_id": 0}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    return ModernBertConfig(**(shape | ids | more), attn_implementation="eager")


def modern(layers: int, hidden: int, intermediate: int, vocabulary: int, windows: dict[int | None, int]) -> Shape:
    """The shape of a ModernBERT, by hand: the gate is a third product of the feed-forward's size."""
    matrices = layers * (4 * hidden**2 + 3 * hidden * intermediate)
    return Shape(matrices, hidden, hidden**2 + hidden * vocabulary, tuple(windows.items()))


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_is_that_of_the_weights(tied: bool) -> None:
    config = small_config(96)
    config.tie_word_embeddings = tied
    assert Shape.of(config) == bert(3, 64, 96, 512)


@pytest.mark.parametrize("biased", [True, False])
def test_the_shape_of_a_modernbert_has_its_windows_and_gates(biased: bool) -> None:
    biases = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias", "decoder_bias"), biased)
    assert Shape.of(small_modern_config(**biases)) == modern(3, 64, 96, 512, {None: 1, 4: 2})


def test_the_shape_of_a_roberta_is_that_of_a_bert() -> None:
    config = small_config(96)
    shape = {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    assert Shape.of(RobertaConfig(vocab_size=512, intermediate_size=96, **shape)) == Shape.of(config)


def test_modernbert_base() -> None:
    """149,655,232 parameters, as published; operations a token by hand: a third of the layers sees the whole piece, the others
    64 slots to either side."""
    config = ModernBertConfig()
    shape = Shape.of(config)
    assert shape == modern(22, 768, 1152, 50368, {None: 8, 64: 14})
    assert parameters_of(config) == 149_655_232
    assert 6 * shape.matrices / 1e6 == pytest.approx(662, abs=0.5)
    for length, millions in ((512, 53), (1024, 92), (8192, 621)):
        windowed = sum(min(length - 1, at + 64) - max(0, at - 64) + 1 for at in range(length))
        attention = 12 * 768 * (8 * length**2 + 14 * windowed)
        pairs = [int(count_pairs(np.array([length]), window)[0]) for window in shape.distinct_windows]
        assert training_flops(shape, length, pairs, 0) == 6 * shape.matrices * length + attention
        assert attention / length / 1e6 == pytest.approx(millions, abs=0.5)


def counted(step) -> int:
    """FLOPs of a forward and backward as torch counts them; attention in plain products, which it can count on a CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [small_config(256), small_config(96), small_modern_config(global_attn_every_n_layers=1)],
    ids=["bert, wide", "bert, narrow", "modernbert"],
)
def test_formula_is_what_torch_counts_of_hugging_faces_model(config: PretrainedConfig) -> None:
    """Exactly: the head is dense, so that every slot counts as predicted; a row is one piece, which every layer sees whole."""
    model = architecture_of(config).hf_class(config)
    ids = torch.randint(0, config.vocab_size, (ROWS, SEQ_LEN))
    slots = ROWS * SEQ_LEN
    expected = training_flops(Shape.of(config), slots, [ROWS * SEQ_LEN**2], slots)
    assert counted(lambda: model(input_ids=ids, labels=ids).loss) == expected


@pytest.mark.parametrize(
    "config",
    [small_config(256), small_config(96), small_modern_config(global_attn_every_n_layers=1)],
    ids=["bert, wide", "bert, narrow", "modernbert"],
)
def test_formula_is_what_torch_counts_of_our_model(config: PretrainedConfig) -> None:
    """Exactly: the head runs on the predicted slots; of a ModernBERT all layers see the whole piece."""
    model = new_model(config)
    slots, predicted = ROWS * SEQ_LEN, 6
    batch = MicroBatch(
        input_ids=torch.randint(0, config.vocab_size, (slots,)),
        positions=torch.arange(SEQ_LEN).repeat(ROWS),
        pieces=torch.zeros(slots, dtype=torch.int32),
        cu_seqlens=torch.arange(0, slots + 1, SEQ_LEN, dtype=torch.int32),
        masked_index=torch.arange(predicted),
        targets=torch.arange(predicted),
        weights=torch.ones(predicted),
        seq_len=SEQ_LEN,
    )
    expected = training_flops(Shape.of(config), slots, [ROWS * SEQ_LEN**2], predicted)
    assert counted(lambda: model(batch)[0]) == expected


def test_torch_counts_scores_of_a_fused_attention_twice() -> None:
    """Where attention is fused, torch's counter is above the formula by the scores that the backward computes again."""
    rows, heads, seq_len, size = 3, 4, 32, 16
    shape = (rows, heads, seq_len, size)
    by_torch = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    attention = 12 * heads * size * rows * seq_len**2
    assert by_torch == attention + 2 * heads * size * rows * seq_len**2


def test_pieces_attend_within_themselves() -> None:
    """A row of two halves: the same but for the scores between the halves."""
    whole, halves = training_flops(BASE, 128, [128**2], 20), training_flops(BASE, 128, [2 * 64**2], 20)
    assert whole - halves == 12 * 12 * 768 * 2 * 64**2


@pytest.mark.parametrize(("sequences_per_s", "seq_len", "predicted", "tflops"), [(272, 128, 20, 64), (52, 512, 80, 53)])
def test_deepspeeds_published_rates(sequences_per_s: int, seq_len: int, predicted: int, tflops: int) -> None:
    """BERT-large on one V100 (DeepSpeed's blog, 28 May 2020). Its own count is a little lower at 128, where the formula
    gives 65.5: within 3 %."""
    flops = sequences_per_s * training_flops(LARGE, seq_len, [seq_len**2], predicted)
    assert flops / 1e12 == pytest.approx(tflops, rel=0.03)


@pytest.mark.parametrize(
    ("shape", "seq_len", "predicted", "gflops"),
    [
        # By hand: 85.0 M weights in matrices of BERT-base's layers, 302 M of BERT-large's, 6 FLOPs a weight and token;
        # 12 L h s^2; the head's 0.59 M + 23.4 M (1.05 M + 31.3 M) weights.
        (BASE, 128, 0, 6 * 84.934656e6 * 128 / 1e9 + 12 * 12 * 768 * 128**2 / 1e9),
        (LARGE, 512, 0, 6 * 301.989888e6 * 512 / 1e9 + 12 * 24 * 1024 * 512**2 / 1e9),
        (BASE, 0, 1, 6 * (0.589824e6 + 23.440896e6) / 1e9),
        (LARGE, 0, 1, 6 * (1.048576e6 + 31.254528e6) / 1e9),
    ],
)
def test_six_operations_a_weight_and_token(shape: Shape, seq_len: int, predicted: int, gflops: float) -> None:
    assert training_flops(shape, seq_len, [seq_len**2], predicted) / 1e9 == pytest.approx(gflops, rel=1e-9)


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "fp16", 835.0),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40", "bf16", 181.05),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA GeForce RTX 4090", "fp16", 165.2),
    ],
)
def test_peaks_by_name(device: str, precision: str, tflops: float) -> None:
    assert peak_flops(device, precision) == tflops * 1e12


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("Tesla V100-SXM2-32GB", "bf16"),  # emulated there
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16"),  # a part of the device
        ("NVIDIA A10G", "bf16"),  # no A10
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("Radeon", "fp16"),
    ],
)
def test_what_is_not_tabled_has_no_peak(device: str, precision: str) -> None:
    assert peak_flops(device, precision) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_cpu_has_the_peak_that_is_given_or_none(precision: str) -> None:
    device = torch.device("cpu")
    assert peak_of(device, precision) is None
    assert peak_of(device, precision, 1.5) == (1.5e12, "logging.peak_tflops")


def test_measured_peak_is_at_least_what_a_product_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of ours: of the products of side 256 one is held up and the best takes 5 ms, too short to be the size; the
    best of side 512 takes 30 ms, and so it is the size, of which a repetition takes 25 ms."""
    from maskloom.models import flops

    times = iter([1.0, 0.5, 0.005, 0.006, 1.0, 0.04, 0.03, 0.5, 0.031, 0.025, 0.3, 0.04, 0.05])
    monkeypatch.setattr(flops, "_seconds_of_product", lambda matrix: next(times))
    assert measured_flops(torch.device("cpu"), "fp32") == pytest.approx(2 * 512**3 / 0.025)


def test_measuring_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    measured_flops(torch.device("cpu"), "fp32")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_warning_while_measuring() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured_flops(torch.device("cpu"), "bf16")
    assert [str(warning.message) for warning in caught] == []
