"""Explorations of a user's own, by dotted path or entry point."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from croupier.policy.errors import ScoringError
from croupier.policy.exploration.base import ExplorationBase, FloatArray, Round

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("ENTRY_POINTS", "Custom")

ENTRY_POINTS = "croupier.explorations"
"""Group of the entry points by which installed packages offer explorations."""

_UNCERTAINTIES = frozenset({"deviation", "covariance", "members"})


class Custom(ExplorationBase, frozen=True, tag="custom"):
    """A user's own exploration, imported by its path or the name of an entry point.

    The class is made with `params` as keyword arguments and has a method
    ``probabilities(scores, training_rows)`` that gives the pmf over the eligible actions, shape
    (K,), for their scores. One that has to know how sure the oracle is says so by an attribute
    ``needs`` (a set of ``deviation``, ``covariance`` and ``members``), and one that makes use of it
    where the oracle tells by an attribute ``wants``; it is given
    :class:`~croupier.policy.estimates.Estimates` in the place of scores. Eligibility, the floor and
    the checks of scores are done here. Put it through ``croupier check-policy`` first.

    Attributes
    ----------
    path
        ``module:Class``, or the name of an entry point in the group ``croupier.explorations``.
    params
        Arguments of the class.
    """

    path: str
    params: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, named in (("needs", self.needs), ("wants", self.wants)):
            unknown = sorted(named - _UNCERTAINTIES)
            if unknown:
                known, got = ", ".join(sorted(_UNCERTAINTIES)), ", ".join(unknown)
                raise ValueError(f"path: {name} of {self.path} must be among {known}, got {got}")

    @property
    def needs(self) -> Uncertainty:
        """What the class says that it needs."""
        return frozenset(getattr(self._implementation(), "needs", ()))

    @property
    def wants(self) -> Uncertainty:
        """What the class needs, and what it says that it makes use of."""
        return self.needs | frozenset(getattr(self._implementation(), "wants", ()))

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        implementation = self._implementation()
        given = estimates if self.wants else estimates.mean
        pmf = implementation.probabilities(given, round_.training_rows)
        pmf = np.asarray(pmf, dtype=np.float64)
        actions = estimates.mean.size
        if pmf.shape != (actions,) or not (pmf >= 0.0).all() or abs(pmf.sum() - 1.0) > 1e-9:
            raise ScoringError(f"{self.path} gave no distribution over {actions} actions")
        return pmf

    def _implementation(self) -> Any:
        return _imported(self.path, msgspec.json.encode(self.params))


@functools.lru_cache(maxsize=64)
def _imported(path: str, params: bytes) -> Any:
    """The object that a path and its arguments stand for; made once, as the hot path asks often."""
    found = _found(path)
    # Looked at before it is called: a generation's file must not be able to call just anything.
    if not (isinstance(found, type) and callable(getattr(found, "probabilities", None))):
        raise ValueError(  # noqa: TRY004 - msgspec reports a ValueError with the field
            f"path must be the module:Class of a class with a method "
            f"probabilities(scores, training_rows), got {path!r}"
        )
    try:
        return found(**msgspec.json.decode(params))
    except (TypeError, ValueError) as error:
        raise ValueError(f"params must be what {path} takes: {error}") from error


def _found(path: str) -> Any:
    module, colon, name = path.partition(":")
    try:
        if not colon:
            offered = entry_points(group=ENTRY_POINTS)
            if path not in offered.names:
                known = ", ".join(sorted(offered.names)) or "none"
                raise ValueError(f"no entry point of that name is installed (there is {known})")
            return offered[path].load()
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"path must be the module:Class or the entry point of an exploration, got {path!r}: "
            f"{error}"
        ) from error
