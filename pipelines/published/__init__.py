"""The papers' published numbers as YAML, each with its paper, table and row; read by `tables.py`."""
