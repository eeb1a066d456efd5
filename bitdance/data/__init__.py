"""Data sets of images and packed codes, and the order of their items."""
