"""Helpers that ops of the family share."""
