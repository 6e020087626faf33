"""S3 without a network: names, signatures, and what is missing. `tests/integration/test_storage.py` reads from a server."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from maskloom.data.reading import s3
from maskloom.data.reading.s3 import list_tars, s3_client, signed_url
from maskloom.data.reading.storage import read_whole
from maskloom.errors import UserError

from .serving import QUICK


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """An environment with credentials, and no files of the user's own."""
    pytest.importorskip("boto3")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    values = {
        "ACCESS_KEY_ID": "id",
        "SECRET_ACCESS_KEY": "secret",
        "REGION": "eu-north-1",
        "EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    s3_client.cache_clear()
    yield
    s3_client.cache_clear()


def test_a_url_is_signed_for_its_object_alone(credentials: None) -> None:
    parts = urlsplit(signed_url("s3://texts/a corpus/0.tar", QUICK))
    assert parts.scheme == "https"
    assert "texts" in parts.netloc + parts.path
    assert parts.path.endswith("/a%20corpus/0.tar")
    query = parse_qs(parts.query)
    assert query["X-Amz-Expires"] == [str(s3.SIGNED_FOR_S)]
    assert query["X-Amz-Credential"][0].startswith("id/")
    assert "secret" not in parts.query


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "s3://bucket", "s3://bucket/"])
def test_a_name_without_bucket_or_key_is_refused(url: str, credentials: None) -> None:
    with pytest.raises(UserError, match="an S3 URL is s3://BUCKET/KEY"):
        signed_url(url, QUICK)


def test_a_listing_has_the_tars_of_all_pages_in_order(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    def paginate(**request: str) -> list[dict[str, Any]]:
        asked.append(request)
        pages = [["v1/b.tar", "v1/index.json"], [], ["v1/a/0.tar", "v1/a.tar.gz"]]
        return [{"Contents": [{"Key": key} for key in page]} if page else {} for page in pages]

    client = SimpleNamespace(get_paginator=lambda name: SimpleNamespace(paginate=paginate))
    monkeypatch.setattr(s3, "s3_client", lambda *given: client)
    assert list_tars("s3://texts/v1", QUICK) == ["s3://texts/v1/a/0.tar", "s3://texts/v1/b.tar"]
    assert asked == [{"Bucket": "texts", "Prefix": "v1/"}]  # a folder: not also "v10"


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_client.cache_clear()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[s3\]'"):
        read_whole("s3://texts/a.tar", QUICK)
