"""Tools for the maintenance of this repository."""
