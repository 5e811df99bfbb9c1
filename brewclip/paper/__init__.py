"""Reproduction of the paper's tables and claims: cells, tables, claims, results page."""
