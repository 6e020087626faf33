"""Train a model of Hugging Face's in a loop of your own, on maskloom's batches: stop it anywhere, and resume exactly.

    python examples/plain_loop.py

It trains for 20 steps without a stop. Then it trains for 10, forgets all but its checkpoint, and trains for 10 more. The losses
are the same.
"""

import tempfile
from pathlib import Path

import small_corpus
import torch
from transformers import BertConfig, BertForMaskedLM

from maskloom import MaskedStream, load_tokenizer


def train(shards: Path, tokenizer_folder: Path, checkpoint: Path, steps: int, every: int = 10) -> list[float]:
    """Train up to a step, from the checkpoint if there is one. Returns the losses of these steps."""
    tokenizer = load_tokenizer(tokenizer_folder)
    stream = MaskedStream(shards, tokenizer, seq_len=64, global_batch_rows=16, form="padded", steps=steps, workers=1)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    shape |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}  # a generator of dropout would be state, too
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
    losses = []
    for batch in stream:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if stream.step % every == 0:
            print(f"step {stream.step}: loss {loss.item():.3f}, {tuple(batch['input_ids'].shape)} tokens")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}
            torch.save(state, checkpoint)
    return losses


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = small_corpus.make(Path(folder))
        whole = train(*corpus, Path(folder, "whole.pt"), 20)
        resumed = [loss for steps in (10, 20) for loss in train(*corpus, Path(folder, "stopped.pt"), steps)]
    assert resumed == whole, (resumed, whole)
    print("stopped and resumed: the same 20 losses")


if __name__ == "__main__":  # reader processes import this file
    main()
