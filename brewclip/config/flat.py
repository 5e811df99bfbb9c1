"""Settings as one level of names, `{"optim.peak_lr": 1e-4, ...}`: for MLflow, checkpoints and sweeps."""

import dataclasses
from typing import Any, get_type_hints

from brewclip.config.renamed import with_current_names
from brewclip.config.settings import Config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{"optim.peak_lr": 1e-4, ...}`: one entry per leaf, in the order of definition."""
    leaves: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{prefix}{item.name}.")
        else:
            leaves[prefix + item.name] = list(value) if isinstance(value, tuple) else value
    return leaves


def unflatten(leaves: dict[str, Any]) -> Config:
    """Invert `flatten`; old names of renamed settings are accepted, unknown names are refused.

    Raises:
        ValueError: if a name is not a setting.
    """
    return _replace(Config(), with_current_names(leaves))


def _replace(config: Any, leaves: dict[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for name, value in leaves.items():
        head, _, rest = name.partition(".")
        if head not in hints:
            raise ValueError(f"{name!r} is not a setting of this version")
        if rest:
            changes[head] = _replace(changes.get(head, getattr(config, head)), {rest: value})
        else:
            changes[head] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **changes)
