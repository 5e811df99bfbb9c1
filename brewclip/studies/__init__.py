"""Studies beyond recall: emotion, word errors, attention maps, figures of queries, truncation."""
