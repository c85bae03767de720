"""Rows to a file: CSV, JSON or JSON Lines by suffix, published whole or not at all."""

from gender_batch.outputs.rows import FORMATS, RowWriter, format_of, write_rows

__all__ = ["FORMATS", "RowWriter", "format_of", "write_rows"]
