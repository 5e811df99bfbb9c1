"""What went wrong with a request to S3: one line for the user, and whether it may pass."""

import os
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse

from brewclip.errors import ObjectMissing, StorageError

_PASSING_STATUS = frozenset((408, 425, 429))
_PASSING_CODES = frozenset(("SlowDown", "RequestTimeout", "Throttling"))


class UnfinishedAnswer(Exception):
    """An answer that is not whole, or not the one to the request; the request is repeated."""


def status_of(error: Any) -> int:
    """Return the HTTP status of botocore's `ClientError`, 0 without one."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def explain(error: BaseException, url: str) -> tuple[StorageError | None, bool]:
    """Convert an error of boto3 to one line, and return whether it may pass; None if it is not storage's."""
    import boto3.exceptions
    import botocore.exceptions as aws
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, boto3.exceptions.S3UploadFailedError) and error.__context__ is not None:
        return explain(error.__context__, url)
    if isinstance(error, aws.ClientError):
        return _explain_refusal(error, url)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(f"{url}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), False
    if isinstance(error, aws.ParamValidationError | aws.InvalidEndpointDiscoveryConfigurationError):
        return StorageError(f"{url}: not a valid S3 name: {' '.join(str(error).split())}"), False
    if isinstance(error, UnfinishedAnswer):
        return StorageError(f"{url}: {error}"), True
    where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the S3 service"
    if isinstance(error, aws.IncompleteReadError | ResponseParserError):
        return StorageError(f"{url}: the answer of {where} is not whole ({type(error).__name__})"), True
    if isinstance(error, aws.ReadTimeoutError | TimeoutError):
        return StorageError(f"{url}: {where} does not answer, or too slowly ({type(error).__name__})"), True
    if isinstance(error, aws.BotoCoreError | ConnectionError | HTTPException | HTTPError):
        return StorageError(f"{url}: {where} cannot be reached ({type(error).__name__}): is it running?"), True
    return None, False


def _explain_refusal(error: Any, url: str) -> tuple[StorageError, bool]:
    code = " ".join(str(error.response.get("Error", {}).get("Code", "")).split())[:80]
    status = status_of(error)
    bucket = urlparse(url).netloc
    if code == "NoSuchBucket":
        return StorageError(f"{url}: bucket {bucket!r} does not exist: create it or correct --storage"), False
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectMissing(f"{url} does not exist"), False
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{url}: S3 refuses the request ({code}): set the clock of this machine"), False
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch") or status in (401, 403):
        return StorageError(f"{url}: S3 refuses the key ({code}): check AWS_ACCESS_KEY_ID and its rights"), False
    passing = status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    return StorageError(f"{url}: S3 answers {status} {code}"), passing
