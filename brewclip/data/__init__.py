"""Datasets of images and recordings in WebDataset shards: written once with a manifest, read by position."""

from brewclip.data.pipeline import as_webdataset

__all__ = ["as_webdataset"]
