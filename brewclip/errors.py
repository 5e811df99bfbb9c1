"""Errors that a user can act on: jobs print their one line and exit with code 2."""


class UserError(ValueError):
    """A mistake of the user or the environment, explained in one line; jobs exit with code 2."""


class StorageError(UserError):
    """Storage refuses access, lacks an object or cannot be reached; the message names the URL and the remedy."""


class ObjectMissing(StorageError):
    """No object of that name exists."""


class ManifestError(UserError):
    """A split without a usable manifest, or shards that disagree with it; the message names them."""


class TooManyBadSamples(UserError):
    """More unusable samples than the allowed share; the message lists the first of them."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit; the message names it and the remedy."""


class NoCheckpoint(CheckpointError):
    """There is no checkpoint, and no sign that there was one."""


def one_line(error: Exception) -> str:
    """Return the message of an error in one line of at most 200 characters; its type if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
