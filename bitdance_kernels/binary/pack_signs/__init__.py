"""Room of pack_signs: floats to packed bits."""
