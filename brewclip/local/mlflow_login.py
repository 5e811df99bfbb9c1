"""User name and password of the local MLflow server: random, stored in a file that only its owner can read."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from brewclip.local.private_files import write_private

SHORTEST_PASSWORD = 12  # MLflow refuses shorter ones


@dataclass(frozen=True)
class MlflowLogin:
    """The only user of an MLflow server."""

    password: str = field(repr=False)
    username: str = "brewclip"

    @classmethod
    def random(cls) -> Self:
        """Create a login (the password has 192 random bits)."""
        return cls(secrets.token_urlsafe(24))

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Read the password of an earlier run, or create one and write it with mode 0600.

        Raises:
            ValueError: if the file holds no password that MLflow accepts.
        """
        if not path.exists():
            login = cls.random()
            write_private(path, f"{login.password}\n")
            return login
        password = path.read_text(errors="replace").strip()
        if len(password) < SHORTEST_PASSWORD or not password.isascii() or not password.isprintable():
            raise ValueError(
                f"{path} must hold a line of at least {SHORTEST_PASSWORD} ASCII characters; delete it to get a new one"
            )
        return cls(password)

    def client_environment(self) -> dict[str, str]:
        """Return the variables by which MLflow's client logs in."""
        return {"MLFLOW_TRACKING_USERNAME": self.username, "MLFLOW_TRACKING_PASSWORD": self.password}
