"""Paths: where in a context something stands, such as ``user.country``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from croupier.policy.events import Features

__all__ = ("MISSING", "value_along", "value_at")

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
    return features[path] if path in features else value_along(features, path.split("."))


def value_along(features: Features, names: Iterable[str]) -> Any:
    """What stands step by step under names, whatever is in them; else :data:`MISSING`."""
    value: Any = features
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value
