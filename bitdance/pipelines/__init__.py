"""Pipelines, from a class or a prompt to images."""
