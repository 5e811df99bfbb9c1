"""What S3 answers and what becomes of it: faults that may pass are repeated, others are one line.

The client is made up here; `test_s3_fault_matrix.py` has a server.
"""

import io

import pytest
from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError

from brewclip.data import s3_storage
from brewclip.data.s3_storage import S3Storage
from brewclip.errors import ObjectMissing, StorageError


class Client:
    """A client whose answers are given; the last one is repeated."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), 0

    def get_object(self, **options):
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    put_object = head_object = get_object


def refusal(status: int, code: str = "") -> ClientError:
    answer = {"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


def body(data: bytes = b"data", **more):
    return {"Body": io.BytesIO(data), "ContentLength": len(data)} | more


@pytest.fixture
def storage(monkeypatch):
    monkeypatch.setattr(s3_storage.time, "sleep", lambda seconds: None)
    return S3Storage("bucket", "prefix", retry_seconds=60.0)


PASSING = [
    *(refusal(status) for status in (408, 425, 429, 500, 502, 503, 504)),
    ConnectionResetError(104, "reset by peer"),
    IncompleteReadError(actual_bytes=3, expected_bytes=4),
    ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_faults_that_may_pass_are_repeated(monkeypatch, storage, fault):
    client = Client(fault, fault, body())
    monkeypatch.setattr(s3_storage, "s3_client", lambda: client)
    assert storage.read("one") == b"data"
    assert client.calls == 3


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_faults_that_do_not_pass_end_in_one_line(monkeypatch, fault):
    monkeypatch.setattr(s3_storage, "s3_client", lambda: Client(fault))
    with pytest.raises(StorageError, match="s3://bucket/prefix/one") as caught:
        S3Storage("bucket", "prefix", retry_seconds=0.0).read("one")
    assert "\n" not in str(caught.value)


def test_a_range_without_its_place_is_asked_for_again(monkeypatch, storage):
    client = Client(body(), body(ContentRange="bytes 0-3/9"))
    monkeypatch.setattr(s3_storage, "s3_client", lambda: client)
    assert storage.read_part("one", 0, 4) == (b"data", 9)
    assert client.calls == 2


@pytest.mark.parametrize(
    ("fault", "kind"), [(refusal(404, "NoSuchKey"), ObjectMissing), (refusal(403, "AccessDenied"), StorageError)]
)
def test_refusals_are_not_repeated(monkeypatch, storage, fault, kind):
    client = Client(fault)
    monkeypatch.setattr(s3_storage, "s3_client", lambda: client)
    with pytest.raises(kind):
        storage.read("one")
    assert client.calls == 1


@pytest.mark.parametrize(
    ("answer", "created"), [(body(), True), (refusal(412), False), (refusal(409), False)], ids=["written", "412", "409"]
)
def test_a_conditional_write_says_whether_it_was_done(monkeypatch, storage, answer, created):
    monkeypatch.setattr(s3_storage, "s3_client", lambda: Client(answer))
    assert storage.create("one", b"data") is created
