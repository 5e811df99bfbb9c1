"""The version of the package, and those of what it runs on."""

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
_PACKAGES = ("torch", "ray", "openai-whisper", "open_clip_torch", "webdataset", "mlflow", "boto3", "faiss-cpu")


def describe_versions() -> str:
    """Return the versions of brewclip, Python, its main packages and CUDA, one a line."""
    import platform

    import torch

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    cuda = torch.version.cuda or "none"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    lines = [f"brewclip {__version__}", f"python {platform.python_version()}"]
    lines += [f"{name} {installed(name)}" for name in _PACKAGES]
    return "\n".join([*lines, f"CUDA {cuda}, {gpu}"])
