"""Profiles of Hypothesis: how many cases every ``@given`` test is tried with.

"ci", the default, repeats the same 60 cases of a test; "nightly" draws 1,500. The command line
chooses one, ``pytest --hypothesis-profile=nightly``, or the environment,
``BITDANCE_HYPOTHESIS_PROFILE=nightly``. No case has a deadline: others share the machine.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["CASES", "cases", "register", "share"]

CASES = {"ci": 60, "nightly": 1500}
"""Cases of a test by profile."""


def register() -> None:
    """Register the profiles, and load the one that the environment names."""
    unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", unhurried, max_examples=CASES["ci"], derandomize=True)
    settings.register_profile("nightly", unhurried, max_examples=CASES["nightly"], print_blob=True)
    settings.load_profile(os.environ.get("BITDANCE_HYPOTHESIS_PROFILE", "ci"))


def cases() -> int:
    """Cases of a test by the profile in force."""
    profile = settings.default
    assert profile is not None
    return profile.max_examples


def share(part: int) -> settings:
    """Settings with one case of `part` of the profile's, for a test whose cases take seconds."""
    return settings(max_examples=max(1, cases() // part))
