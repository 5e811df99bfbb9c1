"""Image index: a folder of memory-mapped vectors, searched by cosine similarity, bound to the system that made it."""

from brewclip.serving.index.image_index import ImageEntry, ImageIndex, Match

__all__ = ["ImageEntry", "ImageIndex", "Match"]
