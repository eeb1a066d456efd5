"""flip_bits: random bit flips, on packed bits and on signs."""
