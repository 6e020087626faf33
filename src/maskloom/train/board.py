"""What a run writes for TensorBoard.

    tensorboard/           scalars by the tags of `maskloom.tags`, texts, settings for the HPARAMS tab, charts for CUSTOM SCALARS
    tensorboard/held-out/  `train/loss` and `train/accuracy` with the held-out values: the second line in these two cards

An attempt opens files of its own. `purge_step` in them tells TensorBoard to forget what an earlier attempt wrote of later steps.
So every step is there once, whatever a kill left behind. All scalars of a line are one record.

If the folder cannot be written, the run continues without it, and says so once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from maskloom.progress import warn
from maskloom.tags import HELD_OUT

FOLDER = "tensorboard"
BESIDE = {"eval/loss": "train/loss", "eval/accuracy": "train/accuracy"}
"""Tag of a held-out figure -> the card in which it is the second line."""

FIRST = ("lr", "global_batch_rows", "seq_len", "mask_rate", "optimizer")
"""Columns that the HPARAMS tab shows without being asked: it takes those that are marked, and of them five."""
SETTINGS = {
    **dict.fromkeys(("lr", "global_batch_rows", "seq_len", "mask_rate"), "DATA_TYPE_FLOAT64"),
    "optimizer": "DATA_TYPE_STRING",
    **dict.fromkeys(("hidden_size", "layers", "seed", "parameters"), "DATA_TYPE_FLOAT64"),
    "precision": "DATA_TYPE_STRING",
}
"""Columns of the HPARAMS tab and their types. All runs have the same: TensorBoard reads this list from any one of them."""
FIGURES = {"eval/loss": "held-out loss", "eval/accuracy": "held-out accuracy", "train/loss": "training loss"}

CHARTS = {
    "Does it learn": {
        "loss: training and held-out": ["Multiline", ["^train/loss$"]],
        "accuracy: training and held-out": ["Multiline", ["^train/accuracy$"]],
    },
    "Where the time goes": {
        "seconds of a step": [
            "Multiline",
            ["^utilization/step_time_s$", "^utilization/data_wait_s$", "^utilization/communication_s$"],
        ],
    },
}
"""For CUSTOM SCALARS. The patterns match the sub-run too."""


class Board:
    """The event files of a run. `begin_at` opens them; before and after a failure nothing is written.

    Args:
        run: its folder.
        title: how the run is called in the HPARAMS tab. Runs with one title share a row there.
        settings: values of SETTINGS; empty for no row.
    """

    def __init__(self, run: Path, title: str = "", settings: Mapping[str, bool | float | str] | None = None) -> None:
        self.folder = run / FOLDER
        self.title, self.settings = title, settings or {}
        self._main: SummaryWriter | None = None
        self._held_out: SummaryWriter | None = None
        self._step = 0
        _quieten_the_writers()

    def begin_at(self, step: int, texts: Mapping[str, str]) -> None:
        """Continue after `step`: what is there of later steps is forgotten.

        Args:
            texts: tag -> Markdown, shown at this step.
        """
        self.close()
        self._step = step
        with self._surviving():
            self._main = self._opened(self.folder)
            if (self.folder / HELD_OUT).exists():
                self._held_out = self._opened(self.folder / HELD_OUT)
            self._main.add_custom_scalars(CHARTS)
            if self.settings:
                _add(self._main, hparams_pb(dict(self.settings), trial_id=self.title), step)
                _add(self._main, columns(), step)
            self._write_texts(step, texts)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the values of a line, by their tags. They are on the disk afterwards."""
        with self._surviving():
            if self._main is None:
                return
            # Before the writer's thread finds out, with a traceback of its own.
            if not self.folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
            _write(self._main, values, step)
            beside = {BESIDE[tag]: value for tag, value in values.items() if tag in BESIDE}
            if beside:
                self._held_out = self._held_out or self._opened(self.folder / HELD_OUT)
                _write(self._held_out, beside, step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text for the TEXT tab."""
        with self._surviving():
            self._write_texts(step, {tag: markdown})

    def close(self) -> None:
        with self._surviving():
            for writer in (self._main, self._held_out):
                if writer is not None:
                    writer.close()
        self._main = self._held_out = None

    def _opened(self, folder: Path) -> SummaryWriter:
        return SummaryWriter(str(folder), purge_step=self._step + 1)

    def _write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        if self._main is not None:
            for tag, markdown in texts.items():
                _add(self._main, text_pb(tag, markdown), step)
            self._main.flush()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            writers, self._main, self._held_out = (self._main, self._held_out), None, None
            for writer in writers:
                with contextlib.suppress(Exception):  # it may fail for the same reason
                    if writer is not None:
                        writer.close()
            warn(
                f"TensorBoard can no longer be written ({error}): the run continues without it; metrics.jsonl has all of it"
            )


def columns() -> Summary:
    """The columns of the HPARAMS tab, and which of them are shown first."""
    infos = [
        api_pb2.HParamInfo(name=name, type=getattr(api_pb2, kind), differs=name in FIRST)
        for name, kind in SETTINGS.items()
    ]
    figures = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title) for tag, title in FIGURES.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=figures)
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])


def _write(writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
    """One record with all of the values."""
    _add(writer, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)
    writer.flush()


def _add(writer: SummaryWriter, summary: Any, step: int) -> None:
    assert writer.file_writer is not None, "until it is closed"
    writer.file_writer.add_summary(summary, step)


def _quieten_the_writers() -> None:
    """Print no traceback of TensorBoard's own threads: their error is raised in ours with the next line, and said there."""
    before = threading.excepthook
    if getattr(before, "__module__", "") == __name__:  # for an earlier `Board`
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != event_file_writer.__name__:
            before(arguments)

    threading.excepthook = hook
