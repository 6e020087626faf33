"""Objects of S3: their names, a signed URL for each request, and a listing of a folder.

boto3 finds credentials, region and endpoint. The bytes themselves come over http(s) like all others (`remote.py`).
"""

from __future__ import annotations

import functools
import os
from typing import Any

from maskloom.config import Storage
from maskloom.errors import UserError

SIGNED_FOR_S = 3600


def list_tars(url: str, settings: Storage) -> list[str]:
    """URLs of the tars in an S3 folder and below, in order of their names."""
    bucket, prefix = _bucket_and_key(url.rstrip("/") + "/")
    client = s3_client(os.getpid(), settings.timeout_s, settings.attempts)
    from botocore.exceptions import BotoCoreError, ClientError  # it is installed, or there would be no client

    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{url} cannot be listed: {error}") from None
    return [f"s3://{bucket}/{key}" for key in sorted(keys) if key.endswith(".tar")]


def signed_url(url: str, settings: Storage) -> str:
    """The http(s) URL of an object of S3, signed anew for each request: credentials are renewed now and then."""
    bucket, key = _bucket_and_key(url)
    if not key:
        raise UserError(f"{url}: an S3 URL is s3://BUCKET/KEY")
    client = s3_client(os.getpid(), settings.timeout_s, settings.attempts)
    from botocore.exceptions import BotoCoreError

    try:
        return str(client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, SIGNED_FOR_S))
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"{url}: boto3 cannot sign a request for it: {error}") from None


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{url}: an S3 URL is s3://BUCKET/KEY")
    return bucket, key


@functools.lru_cache(maxsize=8)
def s3_client(pid: int, timeout_s: float, attempts: int) -> Any:
    """The S3 client of process `pid`. It is anonymous if there are no credentials."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError("s3:// URLs are read with boto3: pip install 'maskloom[s3]'") from None
    try:
        session = boto3.session.Session()
        config = Config(
            signature_version="s3v4" if session.get_credentials() else UNSIGNED,
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        return session.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"boto3 cannot be set up for S3: {error}. Look at AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL"
        ) from None
