"""The key pair of the local S3 server: random, stored in a file that only its owner can read."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from brewclip.local.private_files import write_private


@dataclass(frozen=True)
class S3Key:
    """An S3 key pair."""

    access_key_id: str
    secret_access_key: str = field(repr=False)

    @classmethod
    def random(cls) -> Self:
        """Create a key pair (the secret has 240 random bits)."""
        return cls(f"brewclip{secrets.token_hex(6)}", secrets.token_urlsafe(30))

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Read the key pair of an earlier run, or create one and write it with mode 0600.

        Raises:
            ValueError: if the file holds something else.
        """
        if not path.exists():
            key = cls.random()
            write_private(path, json.dumps(asdict(key)))
            return key
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} does not hold a key pair ({error}); delete it to get a new one") from error
