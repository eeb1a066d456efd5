"""unpack_signs: packed bits to +1 and -1."""
