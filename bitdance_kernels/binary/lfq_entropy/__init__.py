"""lfq_entropy: the entropies of group-wise look-up-free quantisation."""
