"""Helpers of the ops of all families: checks, native modules, rows, Triton."""
