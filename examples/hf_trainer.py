"""transformers' Trainer on a MaskedStream: stopped and resumed exactly, on one rank or several.

    pip install --constraint constraints.txt accelerate    # which the Trainer needs, and maskloom does not
    python examples/hf_trainer.py
    python examples/hf_trainer.py FOLDER && torchrun --nproc-per-node 2 examples/hf_trainer.py FOLDER

FOLDER is for the corpus, the tokenizer and the checkpoints, so that all ranks have the same. Left out: a temporary one.

A Trainer would give its loader to accelerate, which is made for single examples: it cuts batches, or keeps one of N. A stream
gives each rank its own whole batch, so `StreamTrainer` takes the loader as it is. `SaveStream` writes the state of the stream
into each checkpoint. `ignore_data_skip` keeps the Trainer from reading all batches again that it has trained on.

`masked_loss` is the mean over the predicted tokens of the whole global batch. BertForMaskedLM's own loss is the mean over one
batch, which the Trainer takes for a part of a sum: on N ranks, or with N batches accumulated, gradients would be N times as large
(transformers 5.23).

The example trains for 12 steps. Then it trains for 6, stops, and resumes from the checkpoint with a new model and a new stream.
The batches and the losses of steps 7 to 12 are the same, with dropout.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import small_corpus
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from maskloom import MaskedStream, load_tokenizer

FILE = "stream.json"
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}


class StreamTrainer(Trainer):
    """A Trainer whose train_dataset is a MaskedStream."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Of its own generator: a loader that begins draws a number, and a resumed run would have other dropout from there.
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), zlib.crc32(inputs["input_ids"].cpu().numpy().tobytes())]
        return super().training_step(model, inputs, *rest)


def masked_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """This rank's part of the mean over all predicted tokens of the global batch."""
    logits: torch.Tensor = outputs["logits"]
    return (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch
    )


class SaveStream(TrainerCallback):
    """Saves the state of a stream with each checkpoint of its Trainer."""

    def __init__(self, stream: MaskedStream) -> None:
        self.stream = stream

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        content = json.dumps(self.stream.gather_state_dict())  # on every rank: they send each other their parts
        if state.is_world_process_zero:
            Path(args.output_dir, f"checkpoint-{state.global_step}", FILE).write_text(content)


class StopAt(TrainerCallback):
    """What a pre-empted machine does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def train(corpus: tuple[Path, Path], output: Path, stop_at: int = 0, resume: Path | None = None) -> dict[int, Any]:
    """Train to step 12, or to `stop_at`. Returns step -> (loss, checksum of this rank's batch)."""
    arguments = TrainingArguments(
        output_dir=str(output), max_steps=12, save_steps=6, logging_steps=1, learning_rate=1e-3,
        ignore_data_skip=True, use_cpu=True, report_to="none", disable_tqdm=True, log_level="error",
    )  # fmt: skip
    shards, tokenizer = corpus[0], load_tokenizer(corpus[1])
    # Made after the arguments, which start torch.distributed: the stream asks it for the rank.
    stream = MaskedStream(shards, tokenizer, seq_len=64, global_batch_rows=16, form="padded")
    if resume:
        stream.load_state_dict(json.loads((resume / FILE).read_text()))
    set_seed(1)
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **SHAPE))
    callbacks = [SaveStream(stream), StopAt(stop_at)]
    trainer = StreamTrainer(model, arguments, train_dataset=stream, compute_loss_func=masked_loss, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    losses = {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}
    first = trainer.state.global_step - len(trainer.seen)
    return {first + place: (losses[first + place], batch) for place, batch in enumerate(trainer.seen, start=1)}


def main() -> None:
    with tempfile.TemporaryDirectory() as own:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else own)
        corpus = small_corpus.make(folder)
        whole = train(corpus, folder / "whole")
        train(corpus, folder / "stopped", stop_at=6)
        resumed = train(corpus, folder / "stopped", resume=folder / "stopped" / "checkpoint-6")
        for step, (loss, batch) in sorted(resumed.items()):
            print(
                f"step {step}: loss {loss}, batch {batch:08x}; without a stop: {whole[step][0]}, {whole[step][1]:08x}"
            )
        assert list(resumed) == list(range(7, 13)) and all(resumed[step] == whole[step] for step in resumed)
        print("stopped and resumed: the same batches and losses")


if __name__ == "__main__":
    main()
