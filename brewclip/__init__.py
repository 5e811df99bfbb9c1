"""BrewCLIP: speech-image retrieval with frozen Whisper, frozen CLIP and what is learned between them.

Importing the package is cheap: nothing heavy is loaded before it is asked for.
"""

__version__ = "0.1.0"
