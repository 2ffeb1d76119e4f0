"""Heads: from a backbone's features to class logits; one file per paper, the table in `catalog.py`."""
