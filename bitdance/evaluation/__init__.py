"""Metrics of tokenizers and models on a data set."""
