"""The paper's tables as grids of cells: what is trained, what is measured, and which claims follow."""
