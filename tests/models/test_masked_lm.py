"""What `packed` makes of a Hugging Face model, and what is asked of it. Its forward is compared with each architecture's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import BertForMaskedLM, EuroBertConfig
from transformers.models.bert.modeling_bert import BertLayer

from maskloom.config import ModernBert
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.attention import Way
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import (
    MaskedLM,
    PackedLayer,
    PaddedDecoder,
    attention_dropout_of,
    decoder_of,
    embedding_of,
    head_size_of,
    hidden_matrices,
    layers_of,
    new_model,
    packed,
)
from maskloom.tokenizers.base import Tokenizer
from tests.models.test_bert import bucket, make_rows, tiny_config


def test_the_object_and_its_parameters_stay(tokenizer: Tokenizer) -> None:
    theirs = BertForMaskedLM(tiny_config(tokenizer.vocab_size))
    parameters = dict(theirs.named_parameters())
    ours = packed(theirs)
    assert ours is theirs
    assert isinstance(ours, MaskedLM)
    assert isinstance(ours, BertForMaskedLM)
    assert all(isinstance(layer, PackedLayer) for layer in layers_of(ours))
    assert isinstance(decoder_of(ours), PaddedDecoder)
    after = dict(ours.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert after.keys() == parameters.keys()
    assert embedding_of(ours).weight is ours.bert.embeddings.word_embeddings.weight


def test_the_weights_of_a_seed_stay_what_they_were() -> None:
    """Drawn layer by layer after a first model, by Hugging Face's own rules: so runs of all versions begin."""
    config = tiny_config(100, num_hidden_layers=3)
    torch.manual_seed(3)
    found = new_model(config).state_dict()
    torch.manual_seed(3)
    expected = BertForMaskedLM(config)
    expected.bert.encoder.layer = nn.ModuleList([BertLayer(config, number) for number in range(3)])
    expected.post_init()
    assert all(torch.equal(found[name], weight) for name, weight in expected.state_dict().items())


def test_hidden_matrices_are_the_layers_2_d_weights(tokenizer: Tokenizer) -> None:
    model = new_model(tiny_config(tokenizer.vocab_size))
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith("bert.encoder.layer.") and parameter.ndim == 2
    ]
    assert [names[matrix] for matrix in hidden_matrices(model)] == expected
    assert len(expected) == 2 * 6


def test_what_attention_is_chosen_by() -> None:
    config = tiny_config(100, hidden_size=48, num_attention_heads=3, attention_probs_dropout_prob=0.25)
    assert (head_size_of(config), attention_dropout_of(config)) == (16, 0.25)
    assert head_size_of(EuroBertConfig(hidden_size=48, num_attention_heads=3, head_dim=24)) == 24


@pytest.mark.parametrize("checkpoints", [False, True])
def test_layers_computed_twice_give_the_same_gradients(checkpoints: bool, tokenizer: Tokenizer) -> None:
    config = tiny_config(tokenizer.vocab_size, hidden_dropout_prob=0.3)
    torch.manual_seed(1)
    plain, other = new_model(config).train(), new_model(config).train()
    other.load_state_dict(plain.state_dict())
    other.checkpoints_activations = checkpoints
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
    for model in (plain, other):
        torch.manual_seed(2)
        model(batch)[0].backward()
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name


def modern_bert(tokenizer: Tokenizer) -> MaskedLM:
    """Tiny, without dropout, with a layer that sees all and one that sees three slots to either side."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    settings = ModernBert(**shape, local_attention=6, global_attn_every_n_layers=2)
    torch.manual_seed(3)
    return new_model(ARCHITECTURES["modernbert"].config(settings, tokenizer)).train()


def test_another_theta_compiles_nothing_anew(tokenizer: Tokenizer) -> None:
    """Tables of angles are made before what is compiled, which is one graph."""
    model, plain = modern_bert(tokenizer), modern_bert(tokenizer)
    model.kernels = plain.kernels = KERNELS["compile"]
    with torch.no_grad():
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            two.copy_(one.mul_(10))  # as they are drawn, scores are so near to 0 that no angle is seen in the loss
    counter = CompileCounter()
    torch._dynamo.reset()
    model.compile(backend=counter, fullgraph=True, dynamic=False)
    losses = []
    for theta, lengths in ((160_000.0, [[32], [10, 20]]), (10.0, [[32], [10, 20]]), (10.0, [[5, 27], [32]])):
        batch = bucket(make_rows(lengths, tokenizer), tokenizer)
        for each in (model, plain):
            each.config.rope_parameters["full_attention"]["rope_theta"] = theta
        losses.append(model(batch)[0].item())
        assert losses[-1] == plain(batch)[0].item() == plain.forward(batch)[0].item()
    assert losses[0] != losses[1]
    assert counter.frame_count == 1


def test_layers_with_the_same_window_and_base_share_their_masks(tokenizer: Tokenizer) -> None:
    model = new_model(tiny_config(tokenizer.vocab_size, num_hidden_layers=5))
    pieces = model.pieces_by_layer(bucket(make_rows([[32]], tokenizer), tokenizer))
    assert len(pieces) == 5
    assert all(each is pieces[0] for each in pieces)
    modern_pieces = modern_bert(tokenizer).pieces_by_layer(bucket(make_rows([[32]], tokenizer), tokenizer))
    assert [each.window for each in modern_pieces] == [None, 3]
    assert not torch.equal(modern_pieces[0].rotary.cos, modern_pieces[1].rotary.cos)


@pytest.mark.parametrize("kernels", ["eager", "compile", "onednn"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_no_way_of_attention_changes_a_gradient(
    checkpoints: bool, kernels: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rows of 32 slots were too long for a mask: in blocks and by pieces, beside masks of whole rows."""
    batch = bucket(make_rows([[32], [10, 20], [4, 4, 20]], tokenizer), tokenizer)
    found, ways = [], []
    for most, least in ((1024, 1000), (16, 1)):
        monkeypatch.setattr("maskloom.models.attention.MOST_MASKED", most)
        monkeypatch.setattr("maskloom.models.attention.SLOTS_A_WINDOW", least)
        model = modern_bert(tokenizer)
        model.kernels, model.checkpoints_activations = KERNELS[kernels], checkpoints
        ways.append([pieces.way for pieces in model.pieces_by_layer(batch)])
        model(batch)[0].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert ways == [[Way.ROWS, Way.ROWS], [Way.PIECES, Way.BLOCKS]]
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=0)


def test_drop_acts_in_training_alone(tokenizer: Tokenizer) -> None:
    model = new_model(tiny_config(tokenizer.vocab_size))
    hidden = torch.ones(100, 8)
    assert model.eval().drop(hidden, 0.5) is hidden
    assert model.train().drop(hidden, 0.0) is hidden
    assert 0 < (model.drop(hidden, 0.5) == 0).sum() < hidden.numel()


@pytest.mark.parametrize("bias", [True, False])
def test_padding_takes_no_part(bias: bool) -> None:
    decoder = nn.Linear(8, 50, bias=bias)
    hidden = torch.randn(3, 8, requires_grad=True)
    expected = decoder(hidden)
    decoder.__class__ = PaddedDecoder
    assert torch.equal(decoder(hidden), expected)  # a CPU needs none
    decoder.alignment = 64
    padded = decoder(hidden)
    assert padded.shape == (3, 64)
    torch.testing.assert_close(padded[:, :50], expected)
    assert torch.equal(padded[:, 50:], torch.full((3, 14), -torch.inf))
    torch.testing.assert_close(padded.softmax(-1)[:, :50], expected.softmax(-1))
    padded.logsumexp(-1).sum().backward()
    assert torch.isfinite(decoder.weight.grad).all()
    assert torch.isfinite(hidden.grad).all()
