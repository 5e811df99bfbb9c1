"""Import of existing WebDataset tars as a corpus: adopted unchanged, or rewritten."""
