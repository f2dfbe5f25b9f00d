"""Every exception that Croupier raises on purpose, so that a caller can tell them apart."""

from __future__ import annotations

__all__ = (
    "ConfigError",
    "CroupierError",
    "GenerationError",
    "InexpressibleError",
    "InvalidInputError",
    "LogUnavailableError",
    "NoIntervalError",
    "NotEnoughDataError",
    "ScoringError",
)


class CroupierError(Exception):
    """Base of all of Croupier's own exceptions."""


class InvalidInputError(CroupierError, ValueError):
    """A value from outside is not what was expected.

    Parameters
    ----------
    field
        Where the value stands, as a path from the root (``actions[2].id``).
    expected
        What was expected there, and what was found instead.
    """

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: {expected}")
        self.field = field
        self.expected = expected

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, str]]:
        """Both parameters, so that it gets from one process into another."""
        return type(self), (self.field, self.expected)


class ConfigError(InvalidInputError):
    """A configuration file, environment variable or flag holds something unusable."""


class ScoringError(CroupierError):
    """An oracle gave no usable scores; the caller falls back to the baseline."""


class GenerationError(CroupierError):
    """A saved generation is missing, incomplete or altered."""


class InexpressibleError(GenerationError):
    """An estimator was fitted, but what serves models can't express it."""


class LogUnavailableError(CroupierError):
    """The event log can't accept a record now; nothing was written."""


class NotEnoughDataError(CroupierError):
    """There are too few rows for what was asked."""


class NoIntervalError(CroupierError):
    """An interval doesn't apply to a log, which no further rows would change.

    Parameters
    ----------
    reason
        Which of the reasons, a word or two for machines.
    explanation
        What was expected, and what was found instead.
    """

    def __init__(self, reason: str, explanation: str) -> None:
        super().__init__(f"no interval ({reason}): {explanation}")
        self.reason = reason
