"""bit_counts: ones per channel."""
