"""Message from driver to workers (settings, environment, lease), and the name of their result file; light to import."""

import time
from dataclasses import dataclass, field
from typing import Any

from brewclip.tracking.tracker import describe_environment
from brewclip.training.lease import Fence

RESULT = "result.json"


@dataclass(frozen=True)
class Assignment:
    """What the driver gives to the workers.

    Attributes:
        config: the run, flattened.
        environment: of the driver: command, commit, versions.
        report: whether evaluations are reported to Ray Train as they come.
        fence: of the driver's lease, which rank 0 checks before it changes the run; None where there is none.
        submitted: when the workers were asked for, in seconds since 1970.
    """

    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=describe_environment)
    report: bool = False
    fence: Fence | None = None
    submitted: float = field(default_factory=time.time)
