"""packed_linear: a linear layer on packed bits."""
