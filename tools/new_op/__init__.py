"""The skeleton of an op; see ``__main__.py``."""
