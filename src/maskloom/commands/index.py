"""Index webdataset tars that exist, without copying them; join corpora; check one.

TAR is a tar file, a folder of tars, the URL (http, https, s3) of a tar, or an s3:// folder. The tars have .txt, .json or
.jsonl members, as `webdataset.ShardWriter` writes them. The index is written into the folder of the first tar, or into --out.
Then name that folder in data.train.

--merge OUT completes a corpus that was written in parts by `maskloom shards --part`.

--merge A B C --out D makes one corpus of several. Their shards stay in their places.

--check CORPUS reads every shard and names everything that differs from the index. With --without FILE it looks for the documents
in FILE (a file or folder of text, as `maskloom shards` reads it) instead. The exit code is 1 if the corpus holds one of them.

examples:
  maskloom index /data/tars --text-key content --val-fraction 0.005
  maskloom index https://host/a-000000.tar https://host/a-000001.tar --out data/a
  maskloom index --merge data/wiki data/books --out data/both
  maskloom index --check data/my_corpus
  maskloom index --check data/my_corpus --without person.jsonl
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import re
from pathlib import Path

import numpy as np

from maskloom.commands.arguments import byte_count, fraction, positive
from maskloom.commands.shards import describe, local_folder
from maskloom.config import Storage
from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import BLOCK_BYTES, check_shard, index_tars, merge_indexes
from maskloom.data.index.loading import load_index
from maskloom.data.reading.samples import read_documents
from maskloom.data.reading.storage import is_remote, list_tars, local_path
from maskloom.data.writing.passes import Options
from maskloom.data.writing.removal import look_for, places, read_list, warn_of_cuts
from maskloom.data.writing.shards import finish
from maskloom.errors import DataFault, UserError
from maskloom.files import naming, read_plain, refuse_existing
from maskloom.hardware import cores
from maskloom.processes import Pool
from maskloom.progress import Progress, say, show, size, warn

MIB = 1 << 20
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst|tlz)$")
FAULTS_SHOWN = 100


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tars", nargs="+", metavar="TAR")
    add("--out", type=local_folder, help="folder of the index (default: the folder of the tars)")
    add("--text-key", help="where the text stands in a JSON object (default: text)")
    add("--val-fraction", type=fraction, help="share of documents held out, by text hash (default: 0)")
    add("--block-bytes", type=byte_count, help="text a block, the unit of shuffling (default: 128K)")
    add(
        "--on-bad-data",
        choices=("raise", "skip"),
        help="samples that cannot be read end the command, or are left out and counted (default: raise)",
    )
    add("--processes", type=positive, default=cores(), help="default: all cores")
    add(
        "--without",
        action="append",
        metavar="FILE",
        help="with --check: see that no document of this file is in the corpus",
    )
    add("--max-document-bytes", type=byte_count, help="with --without: as it was for the corpus (default: 64K)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--merge", action="store_true", help="complete a corpus in parts, or join corpora into --out")
    action.add_argument("--check", action="store_true", help="read a whole corpus and list what is wrong in it")


def run(options: argparse.Namespace) -> int:
    if options.without and not options.check:
        raise UserError("--without is for --check; `maskloom shards CORPUS NEW --without FILE` takes documents out")
    if options.max_document_bytes is not None and not options.without:
        raise UserError("--max-document-bytes is for --without, which is not given")
    if not (options.merge or options.check):
        return _index(options)
    what = "--merge" if options.merge else "--check"
    for name in ("text_key", "val_fraction", "block_bytes", "on_bad_data"):
        if name == "text_key" and options.without:
            continue  # of the list
        if getattr(options, name) is not None:
            raise UserError(
                f"{what} cannot be combined with --{name.replace('_', '-')}: leave it out, the text is indexed already"
            )
    return _merge(options) if options.merge else _check(options)


def _index(options: argparse.Namespace) -> int:
    tars = [tar for given in options.tars for tar in _tars(given)]
    seen: set[str] = set()
    for tar in tars:
        name = tar if is_remote(tar) else str(Path(tar).resolve())
        if name in seen:
            raise UserError(f"{tar} is given twice: its documents would be read twice an epoch")
        seen.add(name)
    first = options.tars[0]
    if is_remote(first) and not options.out:
        raise UserError(f"{first} is remote: name the folder of the index with --out")
    given = local_path(first) if not options.out else options.out
    folder = given if options.out or given.is_dir() else given.parent
    if not folder.exists():
        refuse_existing(folder)  # a dangling link: fail before the tars are read
    for known in dict.fromkeys([folder, *(Path(tar).parent for tar in tars if not is_remote(tar))]):
        _respect_split(known, is_out=known.absolute() == folder.absolute())
    # The size of a remote tar is not known before it was read, so then progress counts shards.
    count = any(map(is_remote, tars))
    total = len(tars) if count else sum(Path(tar).stat().st_size for tar in tars)
    with naming(folder), Progress("indexing", total, *(("shards", 1) if count else ("MiB", MIB))) as progress:
        index = index_tars(
            tars,
            folder.absolute(),
            block_bytes=options.block_bytes or BLOCK_BYTES,
            text_key=options.text_key or "text",
            fraction=options.val_fraction or 0.0,
            processes=options.processes,
            skip_bad=options.on_bad_data == "skip",
            on_bytes=lambda size: progress.advance(1 if count else size),
        )
    describe(folder / "index.json", index, None)
    if options.on_bad_data == "skip":
        bad, good = index.header["bad_documents"], index.header["documents"] + index.header["held_out_documents"]
        say(f"{bad:,} of {bad + good:,} documents cannot be read and are left out")
    return 0


def _respect_split(folder: Path, is_out: bool) -> None:
    """Make sure that text which `maskloom shards` held out does not silently become training text.

    Raises:
        UserError: the index would replace one by `maskloom shards`, which says what is held out and what the tokens are.
    """
    try:
        header = json.loads(read_plain(folder / "index.json"))
        kept = bool(header["tokens"]) or any(shard["split"] == "validation" for shard in header["shards"])
    except (OSError, ValueError, TypeError, KeyError):
        return  # there is none, or it says nothing of this
    if kept and is_out:
        raise UserError(
            f"{folder / 'index.json'} was written by `maskloom shards` and says which shards are held out or tokenised. An "
            "index of the tars alone would lose that: write the corpus again, remove index.json first, or give another --out"
        )
    if kept:
        warn(f"{folder / 'index.json'} says which shards are held out or tokenised: this index does not follow it")


def _merge(options: argparse.Namespace) -> int:
    if not options.out:
        if len(options.tars) > 1:
            raise UserError("--merge of several corpora needs --out: the folder of the index of all")
        out = Path(options.tars[0])
        describe(out, *finish(out))
        return 0
    if len(options.tars) < 2:
        raise UserError(f"--merge into {options.out} needs two corpora or more")
    corpora = [load_index(given) for given in options.tars]
    # Token shards and their text have one digest, so this finds them too.
    for place, corpus in enumerate(corpora):
        same = next((other for other in range(place) if corpora[other].digest == corpus.digest), None)
        if same is not None:
            raise UserError(
                f"{options.tars[same]} and {options.tars[place]} hold the same documents, as text or token shards, which would "
                "be read twice an epoch: name one of them"
            )
    if (options.out / "index.json").exists():
        raise UserError(f"{options.out} holds an index already: name another folder")
    with naming(options.out):
        merged = merge_indexes(corpora, options.out.absolute())
    describe(options.out / "index.json", merged, None)
    return 0


def _check(options: argparse.Namespace) -> int:
    if len(options.tars) > 1:
        raise UserError("--check reads one corpus at a time")
    if options.without:
        return _look_for(options)
    index = load_index(options.tars[0], finds_shards=False)  # a missing shard is one fault among others
    faults: list[tuple[int, DataFault]] = []
    total = sum(shard.bytes for shard in index.shards)
    with Progress("checking", total, "MiB", MIB) as progress, Pool(options.processes, __name__, "webdataset") as pool:
        numbers = range(len(index.shards))
        for number, found in zip(numbers, pool.map(functools.partial(check_shard, index), numbers), strict=True):
            faults += [(number, fault) for fault in found]
            progress.advance(index.shards[number].bytes)
    for number, fault in faults[:FAULTS_SHOWN]:
        show(_describe_fault(index, number, fault))
    if len(faults) > FAULTS_SHOWN:
        show(f"and {len(faults) - FAULTS_SHOWN:,} more")
    if faults:
        shards = len({number for number, _ in faults})
        raise UserError(
            f"{len(faults):,} fault(s) in {shards:,} of {len(index.shards):,} shard(s) of {options.tars[0]}"
        )
    header = index.header
    show(
        f"{options.tars[0]} is what was indexed: {len(index.shards):,} shard(s), {size(total)}, "
        f"{header['blocks']:,} blocks, {header['documents'] + header['held_out_documents']:,} documents"
    )
    return 0


def _look_for(options: argparse.Namespace) -> int:
    given = options.tars[0]
    chosen = {"text_key": options.text_key, "longest_document_bytes": options.max_document_bytes}
    settings = Options(**{name: value for name, value in chosen.items() if value is not None})
    wanted = read_list(options.without, settings)
    index = load_index(given if "://" in given else Path(given).absolute())
    with Progress("looking", len(index.shards), "shards", 1) as progress:
        seen = look_for(index, wanted, options.processes, lambda number: progress.advance(1))
    held = [document for document in wanted if document.whole in seen.counts or document.pieces & seen.counts.keys()]
    if held:
        raise UserError(f"{len(held):,} of {len(wanted):,} documents, or parts of them, are in {given}: {places(held)}")
    warn_of_cuts(wanted, seen, settings)
    total = index.header["documents"] + index.header["held_out_documents"]
    show(f"none of the {len(wanted):,} documents is in {given}: all of its {total:,} documents were compared")
    return 0


def _describe_fault(index: Index, number: int, fault: DataFault) -> str:
    """One line: shard, block, kind, message, and the sample if it can be found."""
    if f"offset {fault.offset}" not in str(fault):  # a fault of the whole shard
        return f"shard {number}: {fault.kind}: {fault}"
    here = (index.columns["shard"] == number) & (index.columns["offset"] == fault.offset)
    block = int(np.flatnonzero(here)[0])
    key = fault.key or (_first_bad_key(index, block) if fault.kind == "checksum" else "")
    sample = f"; the first sample that cannot be read is '{key}'" if key else ""
    return f"shard {number}, block {block}: {fault.kind}: {fault}{sample}"


def _first_bad_key(index: Index, block: int) -> str:
    """The key of the first sample that cannot be read, in a local block whose bytes changed. Empty: there is none."""
    _, url, offset = index.place(block)
    if is_remote(url) or index.tokenizer_fingerprint:
        return ""
    with local_path(url).open("rb") as file:
        file.seek(offset)
        data = file.read(int(index.columns["length"][block]))
    bad: list[DataFault] = []
    try:
        for _ in read_documents(io.BytesIO(data), url, index.header["text_key"], offset, bad.append):
            pass
    except DataFault as fault:  # not even a tar
        bad.append(fault)
    return bad[0].key if bad else ""


def _tars(given: str) -> list[str]:
    if is_remote(given):
        _refuse_compressed(given.partition("?")[0])
        return [given] if given.partition("?")[0].endswith(".tar") else list_tars(given, Storage())
    path = local_path(given)
    if not path.exists():
        raise UserError(f"no file or folder {given}")
    if not path.is_dir():
        _refuse_compressed(given)
        return [str(path.absolute())]  # "10:00.tar" would look like a URL
    for file in sorted(path.iterdir()):
        _refuse_compressed(str(file))
    found = sorted(str(file.absolute()) for file in path.glob("*.tar"))
    if not found:
        raise UserError(f"no .tar file in {given}")
    return found


def _refuse_compressed(name: str) -> None:
    if COMPRESSED.search(name.lower()):
        raise UserError(
            f"{name} is compressed, so no part of it can be read alone: decompress it first (gunzip, unzstd, bunzip2)"
        )
