"""A server of images: requests share a batch that they enter and leave between AR steps."""
