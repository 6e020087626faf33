"""Checkpoints: saved while training continues, verified, found, loaded at another world size and ZeRO stage, forked.

    RUN/checkpoints/step-00001000/{DeepSpeed's files, data.json, manifest.json}   RUN/checkpoints/latest.json

A checkpoint is written into a folder of another name, which becomes `step-*` when every rank's files are on the disk and their
digests in its manifest: a folder named `step-*` is whole. A resume takes the newest one whose files have the sizes and SHA-256
digests of its manifest, and says so loudly when that is not the newest there is. The data state is a few integers a lane, valid
at any world size.

    state    what a checkpoint holds beside the engine's files, and what its data follows from
    digests  where a checkpoint is judged good: manifests, and what is wrong with a folder's files
    save     all ranks' parts, in the background, to a whole folder; what is kept
    find     the newest whole one of a run, or the one that another run begins with
    fit      what of a configuration may differ from that of the checkpoint
    room     free memory and free space
"""

from maskloom.data.identity import fingerprint, tokenizing_of
from maskloom.train.checkpoint.digests import damage
from maskloom.train.checkpoint.find import (
    drop_after,
    find,
    find_at_most,
    find_origin,
    known_intervals,
    resumable_cursors,
    saved_at,
)
from maskloom.train.checkpoint.fit import check_fits, origin_of
from maskloom.train.checkpoint.save import Saver
from maskloom.train.checkpoint.state import State, Which, read_state

__all__ = [
    "Saver",
    "State",
    "Which",
    "check_fits",
    "damage",
    "drop_after",
    "find",
    "find_at_most",
    "find_origin",
    "fingerprint",
    "known_intervals",
    "origin_of",
    "read_state",
    "resumable_cursors",
    "saved_at",
    "tokenizing_of",
]
