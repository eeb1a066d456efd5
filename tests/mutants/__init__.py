"""Faults planted one at a time, each with the tests that must fail.

``python -m tests.mutants`` plants them in a copy of the checkout, runs the named tests and reports
those that nothing has noticed. The faults are records in the TOML files beside this module, one
file for each area; ``records.py`` says what a record holds.
"""
