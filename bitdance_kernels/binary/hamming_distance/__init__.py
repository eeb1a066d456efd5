"""hamming_distance: distances between codes, all pairs or the nearest."""
