"""Create the bucket of BREWCLIP_STORAGE if it is missing; runs as a Job next to MinIO.

BREWCLIP_STORAGE=s3://brewclip AWS_ENDPOINT_URL=http://minio:9000 python k8s/make_bucket.py
"""

import os
import sys
from urllib.parse import urlsplit


def main() -> None:
    """Create the bucket if it is missing; fail if the server does not answer, so that the Job is retried."""
    url = urlsplit(os.environ.get("BREWCLIP_STORAGE", ""))
    if url.scheme != "s3" or not url.netloc:
        sys.exit(f"error: BREWCLIP_STORAGE is {url.geturl()!r}: give s3://bucket")
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    try:
        client.create_bucket(Bucket=url.netloc)
        print(f"made bucket {url.netloc}")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            sys.exit(f"error: cannot make bucket {url.netloc}: {error}")
        print(f"bucket {url.netloc} is there")
    except BotoCoreError as error:
        sys.exit(f"error: cannot make bucket {url.netloc}: {error}")


if __name__ == "__main__":
    main()
