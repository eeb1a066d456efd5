"""Timings of the model layer; each module is a program."""
