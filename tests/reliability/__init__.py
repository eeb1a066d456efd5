"""What the library promises, measured in volume.

Faults are planted, inputs come by the thousand, memory is watched. ``python -m tests.reliability``
runs the suites and writes their figures; the tests beside them run each at a small size.
"""
