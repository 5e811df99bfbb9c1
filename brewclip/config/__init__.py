"""The settings of a run as frozen dataclasses, with their checks, presets and command line."""

from brewclip.config.checks import check, ignored_settings
from brewclip.config.command_line import exit_on_user_error, parse_command_line, parse_options
from brewclip.config.flat import flatten, unflatten
from brewclip.config.presets import PRESETS, by_confidence, for_variant, preset
from brewclip.config.settings import (
    ClusterConfig,
    Config,
    DataConfig,
    ExtractionConfig,
    Fusion,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    Transcript,
    Variant,
)

__all__ = [
    "PRESETS",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "ExtractionConfig",
    "Fusion",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "Transcript",
    "Variant",
    "by_confidence",
    "check",
    "exit_on_user_error",
    "flatten",
    "for_variant",
    "ignored_settings",
    "parse_command_line",
    "parse_options",
    "preset",
    "unflatten",
]
