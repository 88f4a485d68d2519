"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A first run in a fresh clone works out Hypothesis's tables of characters, in each of two processes on two cores. How long
# something took says nothing about whether it is right.
settings.register_profile("hearth", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hearth")
