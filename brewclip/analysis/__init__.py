"""What is made of trained systems: tables, galleries, reports."""
