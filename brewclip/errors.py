"""Errors that one line explains to the user: jobs print the line and exit with code 2."""


class UserError(ValueError):
    """A mistake of the user or of the environment that one line explains; jobs exit with code 2."""


class StorageError(UserError):
    """Storage that refuses, lacks or cannot be reached; the message names the URL and the remedy."""


class ObjectMissing(StorageError):
    """There is no object of that name."""


class ManifestError(UserError):
    """A split without a usable manifest, or shards that disagree with it; the message names them."""


class TooManyBadSamples(UserError):
    """More samples than the set share cannot be used; the message lists the first of them."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit; the message names it and the remedy."""


class NoCheckpoint(CheckpointError):
    """There is no checkpoint, and nothing that says that there was one."""
