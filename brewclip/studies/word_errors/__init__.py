"""Word errors of the transcripts and their effect on recall."""
