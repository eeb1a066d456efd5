"""Data sets: image folders, IDX files, packed codes, Parquet; and the order of their items."""
