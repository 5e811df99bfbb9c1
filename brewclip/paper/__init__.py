"""The tables and claims of the paper, run here: cells, tables, claims, page."""
