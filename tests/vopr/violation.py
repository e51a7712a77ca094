"""What a simulated run must never show."""


class Violation(AssertionError):
    """An invariant does not hold."""
