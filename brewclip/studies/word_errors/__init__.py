"""Word errors of the transcripts, and recall as a function of them."""
