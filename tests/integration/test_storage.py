"""Whole corpora over the network: a server that fails at every kind of place, nginx, and S3.

The fault table is written as docs/faults.md with MASKLOOM_WRITE_DOCS=1, and compared with it otherwise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import webdataset

from maskloom.config import Storage
from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import index_tars
from maskloom.data.index.loading import load_index
from maskloom.data.reading import remote, storage
from maskloom.data.reading.s3 import s3_client, signed_url
from maskloom.data.reading.storage import fetch, list_tars, open_range, read_whole, size_of
from maskloom.errors import DataFault, UserError
from tests.conftest import missing, sentences
from tests.fault_server import Fault, FaultServer, Kind
from tests.integration.conftest import free_port

QUICK = Storage(timeout_s=0.4, attempts=3)
TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
SHARDS, SAMPLES = 3, 40
STRUCK = "shard-000001.tar"


def write_tar(path: Path, texts: dict[str, str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, text in texts.items():
            member = tarfile.TarInfo(f"{key}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars as other people write them, with an index; blocks of several samples."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(3)
    for shard in range(SHARDS):
        texts = {f"{shard}-{number:03}": sentences(rng, rng.randrange(50, 200)) for number in range(SAMPLES)}
        write_tar(folder / f"shard-{shard:06}.tar", texts)
    index_tars(sorted(folder.glob("*.tar")), folder, block_bytes=8 * 1024)
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path) -> list[list[str]]:
    index = load_index(corpus)
    return [index.documents(block, "train") for block in range(index.header["blocks"])]


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has met no object yet, whose downloaded columns and AWS settings are this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "downloads"))
    monkeypatch.setattr(storage, "_first_versions", {})
    monkeypatch.setattr(storage, "_warned", set())
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def read_blocks(index: Index) -> tuple[list[list[str] | None], list[UserError]]:
    """Each block's documents, None for a faulty one; the errors, of which one that is no DataFault ends the run."""
    blocks: list[list[str] | None] = []
    errors: list[UserError] = []
    for block in range(index.header["blocks"]):
        try:
            blocks.append(index.documents(block, "train"))
        except UserError as error:
            errors.append(error)
            blocks.append(None)
            if not isinstance(error, DataFault):
                break
    return blocks, errors


@dataclass(frozen=True)
class Row:
    """One line of the table: a fault, and what it must come to ("" for survived, a DataFault's kind, or an error)."""

    text: str
    kind: Kind
    times: int
    outcome: str
    status: int = 503
    places: tuple[str, ...] = ("between members", "in a tar header", "in data")
    for_ranges_only: bool = False


SURVIVED, STOPS = "", "stops"
ONE_PLACE = ("in data",)
ROWS = [
    Row("connection ends early, length announced", "cut", 1, SURVIVED),
    Row("connection ends early, chunked body", "cut chunked", 1, SURVIVED),
    Row("connection ends early, body without length", "cut close", 1, SURVIVED),
    Row("connection reset", "reset", 1, SURVIVED),
    Row("body stalls", "stall", 1, SURVIVED),
    Row("body drips, a byte at a time", "drip", 1, SURVIVED),
    Row("a bit flips on the way", "flip", 1, SURVIVED),
    Row("status 500", "status", 1, SURVIVED, status=500, places=ONE_PLACE),
    Row("status 503", "status", 1, SURVIVED, places=ONE_PLACE),
    Row("connection ends early, then a new ETag, same bytes", "etag", 1, SURVIVED),
    Row("Content-Range of other bytes", "wrong range", 1, SURVIVED, places=ONE_PLACE, for_ranges_only=True),
    Row("connection ends early", "cut", -1, STOPS),
    Row("connection reset", "reset", -1, STOPS),
    Row("body stalls", "stall", -1, STOPS, places=ONE_PLACE),
    Row("body drips, a byte at a time", "drip", -1, STOPS, places=ONE_PLACE),
    Row("status 500", "status", -1, STOPS, status=500, places=ONE_PLACE),
    Row("status 503", "status", -1, STOPS, places=ONE_PLACE),
    Row("status 403", "status", -1, STOPS, status=403, places=ONE_PLACE),
    Row("Content-Range of other bytes", "wrong range", -1, STOPS, places=ONE_PLACE, for_ranges_only=True),
    Row("server without byte ranges", "no range", -1, STOPS, places=ONE_PLACE, for_ranges_only=True),
    Row("redirect to another host", "status", -1, STOPS, status=302, places=ONE_PLACE),
    Row("a bit of the object is another", "flip", -1, "checksum"),
    Row("the object ends there", "shorter", -1, "truncated"),
    Row("status 404", "status", -1, "missing", status=404, places=ONE_PLACE),
    Row("connection ends early, then a new ETag, other bytes", "content", 1, "changed"),
]
CASES = [(row, place) for row in ROWS for place in row.places]


def position(tar: Path, place: str) -> int:
    """A byte of the tar, near its middle; never where a block begins."""
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[SAMPLES // 2 + 1]
    return {
        "between members": member.offset,
        "in a tar header": member.offset + 200,
        "in data": member.offset_data + 100,
    }[place]


@contextlib.contextmanager
def failing(row: Row, place: str, corpus: Path) -> Iterator[FaultServer]:
    """A server of the corpus that fails as the row says; a redirect leads to a whole copy under another name."""
    with FaultServer(corpus) as other:
        elsewhere = (("Location", f"http://localhost:{other.server_address[1]}/{STRUCK}"),) if row.status == 302 else ()
        fault = Fault(row.kind, position(corpus / STRUCK, place), row.times, STRUCK, row.status, elsewhere)
        with FaultServer(corpus, fault) as server:
            yield server


def measure(row: Row, place: str, corpus: Path, expected: list[list[str]]) -> str:
    """Read the corpus under one fault, and put what happened into words; everything that was read must be right."""
    with failing(row, place, corpus) as server:
        blocks, errors = read_blocks(load_index(server.url, QUICK))
        assert server.faults[0].times != row.times, "the fault did not strike"
    for found, right in zip(blocks, expected, strict=False):
        assert found in (None, right), "bytes of another version, or of none"
    if not errors:
        assert blocks == expected
        return "yes | yes | nothing |"
    kinds = Counter(error.kind if isinstance(error, DataFault) else STOPS for error in errors)
    (kind,) = kinds
    if kind == STOPS:
        assert blocks == [*expected[: len(blocks) - 1], None]
        return "cannot be read | no | nothing: the run ends |"
    return f"`{kind}` | no | {kinds[kind]} block{'s' if kinds[kind] > 1 else ''}, named |"


def outcome_of(measured: str) -> str:
    return SURVIVED if measured.startswith("yes") else STOPS if measured.startswith("can") else measured.split("`")[1]


@pytest.fixture(scope="module")
def table(corpus: Path, expected: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What each case came to; four at a time, for most of them wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("downloads")))
        patch.setattr(remote, "FIRST_WAIT_S", 0.01)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            measured = pool.map(lambda case: measure(*case, corpus, expected), CASES)
            return dict(enumerate(measured))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0].kind}-{number}")
def test_a_fault_is_survived_exactly_or_named(table: dict[int, str], number: int) -> None:
    row, _ = CASES[number]
    assert outcome_of(table[number]) == row.outcome


HEAD = f"""# Faults of the network, and what happens then

Made by `MASKLOOM_WRITE_DOCS=1 python -m pytest tests/integration/test_storage.py`, which reads a corpus of {SHARDS} shards
over a server that fails as the table says, at one byte of the second shard, once or always. The first six columns are
compared with what the tests find each time they run. The last one is what happened to plain webdataset {webdataset.__version__}
with the same tars, server and fault, in {{repeats}} runs each.

*Survived*: every document is read, with every byte as it was indexed. *Cannot be read*: the source is not there at the
moment. The run ends with an error that names the URL, what the server said and what to do. Started again, it resumes from its
last checkpoint. A word in quotes is the kind of a fault of the data: the run ends and names it. With
`data.on_bad_data: skip` it skips the block, counts it and lists it. Nothing is ever left out silently.

| fault | how often | where | detected | survived | lost | plain webdataset |
|---|---|---|---|---|---|---|
"""


def lines(table: dict[int, str]) -> list[str]:
    return [
        f"| {row.text} | {'once' if row.times == 1 else 'always'} | {place} | {table[number]}"
        for number, (row, place) in enumerate(CASES)
    ]


REPEATS = 5
DEADLINE_S = 10.0


def test_the_fault_table_is_what_is_documented(table: dict[int, str], corpus: Path) -> None:
    if os.environ.get("MASKLOOM_WRITE_DOCS") == "1":
        right = [sample for number in range(SHARDS) for sample in samples_of(str(corpus / f"shard-{number:06}.tar"))]
        rows = [f"{line} {compare(*case, corpus, right)} |" for line, case in zip(lines(table), CASES, strict=True)]
        TABLE.write_text(HEAD.format(repeats=REPEATS) + "\n".join(rows) + "\n", encoding="utf-8")
    text = TABLE.read_text(encoding="utf-8")
    assert text.startswith(HEAD.format(repeats=REPEATS))
    documented = [
        line.rpartition(" | ")[0] + " |" for line in text.removeprefix(HEAD.format(repeats=REPEATS)).splitlines()
    ]
    assert documented == lines(table)


def samples_of(*urls: str) -> list[tuple[str, bytes]]:
    """What plain webdataset reads."""
    dataset = webdataset.WebDataset(list(urls), shardshuffle=False, empty_check=False)
    return [(sample["__key__"], sample["txt"]) for sample in dataset]


def plain(row: Row, place: str, corpus: Path, right: list[tuple[str, bytes]]) -> str:
    """What one run of plain webdataset comes to under a fault."""
    found: list[str] = []
    with failing(row, place, corpus) as server:

        def read() -> None:
            try:
                samples = samples_of(*(f"{server.url}/shard-{number:06}.tar" for number in range(SHARDS)))
            except Exception:  # tarfile, webdataset and its pipe raise many kinds
                found.append("an error")
                return
            if samples == right:
                found.append("all read")
            elif [key for key, _ in samples] == [key for key, _ in right]:
                found.append("**other bytes, no error**")
            else:
                found.append(f"**{len(set(right) - set(samples))} of {len(right)} samples lost, no error**")

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(DEADLINE_S)
        return found[0] if found else f"waits on after {DEADLINE_S:g} s"


def compare(row: Row, place: str, corpus: Path, right: list[tuple[str, bytes]]) -> str:
    if row.for_ranges_only:
        return "asks for no range"
    with concurrent.futures.ThreadPoolExecutor(REPEATS) as pool:
        verdicts = Counter(pool.map(lambda _: plain(row, place, corpus, right), range(REPEATS)))
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return "; ".join(f"{verdict}: {count}x" for verdict, count in sorted(verdicts.items()))


def test_plain_webdataset_loses_samples_where_these_blocks_are_survived(corpus: Path, table: dict[int, str]) -> None:
    """Why this reader exists: a body without a length that ends between two samples looks like a shorter tar."""
    if not shutil.which("curl"):
        missing("curl")
    row, place = next(case for case in CASES if case[0].kind == "cut close" and case[1] == "between members")
    right = [sample for number in range(SHARDS) for sample in samples_of(str(corpus / f"shard-{number:06}.tar"))]
    assert "samples lost, no error" in plain(row, place, corpus, right)
    assert table[CASES.index((row, place))].startswith("yes")


def test_a_corpus_in_the_cache_needs_no_server(corpus: Path, expected: list[list[str]], tmp_path: Path) -> None:
    kept = QUICK.model_copy(update={"cache": str(tmp_path / "cache")})
    with FaultServer(corpus) as server:
        index = load_index(server.url, kept)
        assert read_blocks(index) == (expected, [])
        asked = len(server.requests)
        assert read_blocks(index) == (expected, [])
        assert len(server.requests) == asked
    assert read_blocks(index) == (expected, [])  # and the server is gone


READ = """
import hashlib, sys
from maskloom.config import Storage
from maskloom.data.index.loading import load_index
for where in sys.argv[1:]:
    index = load_index(where, Storage(timeout_s=5))
    texts = [text for block in range(index.header["blocks"]) for text in index.documents(block, "train")]
    print(hashlib.sha256("\\0".join(texts).encode()).hexdigest())
"""


def test_variables_of_webdataset_change_nothing(corpus: Path, expected: list[list[str]], tmp_path: Path) -> None:
    """It would rewrite URLs, hand schemes to a command, and turn its readers off."""
    right = hashlib.sha256("\0".join(text for block in expected for text in block).encode()).hexdigest()
    trap = tmp_path / "ran"
    variables = {
        "GOPEN_REWRITE": f"http://=pipe:touch {trap};/=pipe:touch {trap}; ",
        "GOPEN_BUFFER": "1",
        "USE_AIS_FOR": "http:https:s3:file",
        "WDS_REWRITE": f"http://=pipe:touch {trap}; ",
        "WDS_CACHE": str(tmp_path / "webdataset"),
        "WDS_CACHE_SIZE": "1",
        "WDS_SECURE": "1",
        "WDS_SEED": "1",
        "WDS_shard": "000000",
    }
    with FaultServer(corpus) as server:
        command = [sys.executable, "-c", READ, str(corpus), server.url]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [right, right], done.stderr
    assert not trap.exists()
    assert not (tmp_path / "webdataset").exists()


@contextlib.contextmanager
def nginx(folder: Path, root: Path, port: int) -> Iterator[str]:
    """A real server of `root`, as a package installs it, with a configuration of ours in `folder`."""
    if not shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
        missing("nginx")
    folder.mkdir(exist_ok=True)
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{}} http {{ access_log off; {temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    command = [shutil.which("nginx", path="/usr/sbin:" + os.environ["PATH"]), "-p", folder, "-c", folder / "nginx.conf"]
    server = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        size_of(f"{url}/index.json", Storage(timeout_s=1, attempts=100))
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_nginx_serves_a_corpus(corpus: Path, expected: list[list[str]], tmp_path: Path) -> None:
    port = free_port()
    with nginx(tmp_path / "nginx", corpus, port) as url:
        index = load_index(url, QUICK)
        assert read_blocks(index) == (expected, [])
        again = index_tars(
            [f"{url}/{path.name}" for path in sorted(corpus.glob("*.tar"))], tmp_path / "again", block_bytes=8192
        )
        assert again.digest == index.digest
        with pytest.raises(DataFault, match="status 404"):
            read_whole(f"{url}/none.json", QUICK)


def test_nginx_that_is_restarted_while_a_corpus_is_read(
    corpus: Path, expected: list[list[str]], tmp_path: Path
) -> None:
    port = free_port()
    patient = Storage(timeout_s=1, attempts=100)
    with nginx(tmp_path / "nginx", corpus, port) as url:
        index = load_index(url, patient)
        assert index.documents(0, "train") == expected[0]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_blocks, index)
        while not reading.running():
            time.sleep(0.01)
        with nginx(tmp_path / "nginx", corpus, port):
            assert reading.result(timeout=60) == (expected, [])


def test_a_shard_that_nginx_serves_is_replaced(
    corpus: Path, expected: list[list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same bytes with another date are another ETag and no fault; other bytes are."""
    served = tmp_path / "served"
    shutil.copytree(corpus, served)
    shard = served / STRUCK
    with nginx(tmp_path / "nginx", served, free_port()) as url:
        index = load_index(url, QUICK)
        assert read_blocks(index) == (expected, [])
        os.utime(shard, (1, 1))
        assert read_blocks(index) == (expected, [])
        assert capfd.readouterr().err.count("has a new version") == 1
        data = bytearray(shard.read_bytes())
        data[position(shard, "in data")] ^= 1
        shard.with_suffix(".new").write_bytes(data)
        shard.with_suffix(".new").replace(shard)
        blocks, errors = read_blocks(index)
        assert [error.kind for error in errors if isinstance(error, DataFault)] == ["changed"]
        assert [block for block in blocks if block] == [
            right for right, found in zip(expected, blocks, strict=True) if found
        ]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        missing("moto")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the S3 server that the environment names, and an empty bucket `texts`."""
    import boto3

    variables = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3_client.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")
    yield client
    objects = client.list_objects_v2(Bucket="texts").get("Contents", ())
    for entry in objects:
        client.delete_object(Bucket="texts", Key=entry["Key"])
    client.delete_bucket(Bucket="texts")
    s3_client.cache_clear()


def upload(s3: Any, folder: Path, prefix: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), "texts", f"{prefix}/{path.relative_to(folder)}")
    return f"s3://texts/{prefix}"


def test_s3_serves_a_corpus(s3: Any, corpus: Path, expected: list[list[str]], tmp_path: Path) -> None:
    url = upload(s3, corpus, "a corpus/v1")
    index = load_index(url, QUICK)
    assert read_blocks(index) == (expected, [])
    tars = list_tars(url, QUICK)
    assert tars == [f"{url}/shard-{number:06}.tar" for number in range(SHARDS)] == list_tars(f"{url}/", QUICK)
    assert list_tars("s3://texts/", QUICK) == list_tars("s3://texts", QUICK) == tars
    fetch(tars[0], tmp_path / "copy.tar", QUICK)
    assert (tmp_path / "copy.tar").read_bytes() == (corpus / "shard-000000.tar").read_bytes()
    with pytest.raises(UserError, match=r"no \.tar object below s3://texts/a corpus/v"):
        list_tars("s3://texts/a corpus/v", QUICK)  # a folder, not the beginning of a name
    with pytest.raises(UserError, match=r"s3://none/x cannot be listed: .*NoSuchBucket"):
        list_tars("s3://none/x", QUICK)


@pytest.mark.parametrize("key", ["a b.tar", "x#1?y=2.tar", "ü/ß.tar", "a+b%20c.tar", "a//b.tar"])
def test_any_key_of_s3_is_read(s3: Any, key: str, tmp_path: Path) -> None:
    s3.put_object(Bucket="texts", Key=key, Body=b"0123456789")
    url = f"s3://texts/{key}"
    assert read_whole(url, QUICK) == b"0123456789"
    assert size_of(url, QUICK) == 10
    fetch(url, tmp_path / "copy", QUICK)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    assert open_range(url, 2, 3, zlib.crc32(b"234"), settings=QUICK).read() == b"234"


def test_faults_of_s3_are_named(s3: Any) -> None:
    s3.put_object(Bucket="texts", Key="a.tar", Body=b"0123456789")
    for url, code in (("s3://texts/none.tar", "NoSuchKey"), ("s3://no-bucket/a.tar", "NoSuchBucket")):
        with pytest.raises(DataFault, match=rf"{url}: the server has no such object \(status 404.*{code}") as caught:
            open_range(url, 0, 1, 0, settings=QUICK)
        assert caught.value.kind == "missing"
    with pytest.raises(DataFault) as caught:
        open_range("s3://texts/a.tar", 5, 6, 0, settings=QUICK)
    assert caught.value.kind == "truncated"
    assert open_range("s3://texts/a.tar", 5, 5, zlib.crc32(b"56789"), settings=QUICK).read() == b"56789"
    s3.put_object(Bucket="texts", Key="a.tar", Body=b"9876543210")
    with pytest.raises(DataFault) as caught:
        open_range("s3://texts/a.tar", 5, 5, zlib.crc32(b"56789"), settings=QUICK)
    assert caught.value.kind == "changed"
    with pytest.raises(UserError, match="an S3 URL is s3://BUCKET/KEY"):
        read_whole("s3://texts", QUICK)


def test_s3_without_credentials_is_asked_anonymously(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_bucket_acl(Bucket="texts", ACL="public-read")
    s3.put_object(Bucket="texts", Key="a.tar", Body=b"0123456789", ACL="public-read")
    for signed in (True, False):
        if not signed:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            s3_client.cache_clear()
        assert ("Signature=" in signed_url("s3://texts/a.tar", QUICK)) == signed
        assert read_whole("s3://texts/a.tar", QUICK) == b"0123456789"
        assert list_tars("s3://texts", QUICK) == ["s3://texts/a.tar"]


def test_a_signature_is_in_no_message(s3: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 over a server that fails: the same loop, and the S3 name of the object in every message."""
    with FaultServer(corpus) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3_client.cache_clear()
        url = f"s3://texts/{STRUCK}"
        (corpus / "texts").mkdir(exist_ok=True)
        shutil.copy(corpus / STRUCK, corpus / "texts" / STRUCK)
        server.reset(Fault("cut", at=1000), Fault("status", at=1000, status=503))
        assert read_whole(url, QUICK) == (corpus / STRUCK).read_bytes()
        faults = [Fault("status", 0, -1, status=status) for status in (403, 404, 503, 400, 302)]
        for fault in [*faults, Fault("cut", 5, -1), Fault("no range", 5, -1), Fault("reset", 5, -1)]:
            server.reset(fault)
            with pytest.raises(UserError, match=url) as caught:
                open_range(url, 0, 10, 0, settings=QUICK)
            assert "X-Amz" not in str(caught.value)
    shutil.rmtree(corpus / "texts")


def test_a_bucket_of_another_region_is_named(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.tar").write_bytes(b"0123456789")
    moved = Fault("status", 0, -1, status=301, headers=(("x-amz-bucket-region", "eu-north-1"),))
    with FaultServer(tmp_path, moved) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3_client.cache_clear()
        with pytest.raises(UserError, match="the bucket is in eu-north-1: is AWS_REGION"):
            read_whole("s3://texts/a.tar", QUICK)


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_client.cache_clear()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[s3\]'"):
        read_whole("s3://texts/a.tar", QUICK)
