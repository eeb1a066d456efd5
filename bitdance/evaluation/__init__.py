"""Metrics of autoencoders and models on a data set."""
