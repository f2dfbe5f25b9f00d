"""Paths: where in a context something stands, such as ``user.country``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from croupier.policy.events import Features

__all__ = ("MISSING", "value_at")

MISSING = object()
"""What stands at a path where there is nothing."""


def value_at(features: Features, path: str) -> Any:
    """What stands there: under the path as one name, or step by step; else :data:`MISSING`.

    Parameters
    ----------
    features
        A context, or audit attributes.
    path
        Names with dots between them.
    """
    if path in features:
        return features[path]
    value: Any = features
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value
