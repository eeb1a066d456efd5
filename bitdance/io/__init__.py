"""Files: weights, images, folders that are written whole or not at all, and validated settings."""
