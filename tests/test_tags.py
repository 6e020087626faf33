import pytest

from maskloom.tags import PINNED, tag_of, tagged


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss_mean", "train/loss"),
        ("loss", None),
        ("lr", "train/learning_rate"),
        ("tokens_seen", "train/num_input_tokens_seen"),
        ("evaluation_loss", "eval/loss"),
        ("evaluation_accuracy", "eval/accuracy"),
        ("evaluation_loss_1", "eval/loss_1"),
        ("evaluation_probe_macro_f1", "eval/probe_macro_f1"),
        ("evaluation_perplexity", None),
        ("evaluation_tokens", None),
        ("bad_steps", "train_health/bad_steps"),
        ("mfu", "utilization/mfu"),
        ("communication_s", "utilization/communication_s"),
        ("communication_bytes", None),
        ("communication_bytes_all_reduce", None),
        ("of_a_module_of_ones_own", "train/of_a_module_of_ones_own"),
    ],
)
def test_the_tag_of_a_name(name: str, tag: str | None) -> None:
    assert tag_of(name) == tag


def test_pinned_cards_are_tags_that_a_run_writes() -> None:
    names = ("loss_mean", "evaluation_loss", "evaluation_accuracy", "lr", "grad_norm", "tokens_per_s")
    assert tuple(tagged(dict.fromkeys(names, 0.0))) == PINNED
