"""pack_signs: floats to packed bits."""
