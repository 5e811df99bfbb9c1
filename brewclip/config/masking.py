"""Masking of secrets in printed, recorded and raised text: credentials in URLs and keys in environment variables."""

import os
import re

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST_SECRET = 8  # a shorter one would blank words of the text


def without_secrets(text: str) -> str:
    """Return a text without credentials: `https://me:pw@host` becomes `https://host`, keys become `***`."""
    text = re.sub(r"(?<=://)[^/@\s'\"]+@", "", text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
