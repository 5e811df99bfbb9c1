"""Studies beyond recall: emotion, word errors, relevance maps, galleries of queries, truncation."""
