"""Room of bit_counts: ones per channel."""
