"""Bayesian linear regression with its exact posterior, in batch and row by row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from croupier.policy.encoding import PARTS, EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.estimates import Estimates
from croupier.policy.oracle.base import OracleConfigBase, check_rows, require
from croupier.policy.oracle.design import Design, design_of
from croupier.policy.oracle.encoded import not_fitted
from croupier.policy.oracle.moments import designs_of, moments_of, require_room
from croupier.policy.oracle.tables import TableOracle, require_way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.policy.encoding import DecisionColumns, EncodedDecision
    from croupier.policy.estimates import Uncertainty
    from croupier.policy.oracle.base import TrainingRow
    from croupier.policy.oracle.moments import Moments

__all__ = ("RidgeConfig", "RidgeOracle")

_OFFERS: Uncertainty = frozenset({"deviation", "covariance"})
# Up to so many columns the covariance is kept beside its root, in 32 MB.
_KEPT = 2048
# OpenBLAS starts threads for updates larger than this; see RidgeOracle.estimate_encoded.
_UNTHREADED = 8192
_NO_COLUMN = -1
_EPSILON = float(np.finfo(np.float64).eps)
# Relative error of the smallest eigenvalues that a Gram matrix may bring in.
_LOST = 1e-7
# Likewise of their roots, after a rotation.
_HOPELESS = 1e-3
# Rows for which a prior is brought up to date, next to those of the time before.
_MORE = 1.5
_TINY = float(np.finfo(np.float64).tiny)


class RidgeConfig(OracleConfigBase, frozen=True, tag="ridge"):
    """Parameters of :class:`RidgeOracle`.

    Attributes
    ----------
    l2
        Precision before any data, positive, in units of the noise's: of every weight, or of what a
        part contributes, see `prior`.
    prior
        ``weights``: every weight is N(0, 1 / l2). ``parts``: what each part of the columns (the
        constants, the context's features, the action's, their products) contributes to an
        estimate has the variance ``1 / l2``, on average over the interactions. So it makes no
        difference in which units features are or how many there are: with many, a prior of the
        weights alone expects enormous rewards, and explores for ever.
    max_columns
        Most columns that may occur in training, 1 to 20,000; memory and file take 8 bytes for each
        pair of them, and fitting takes time with their third power.
    encoder
        How features become columns.
    """

    l2: float = 1.0
    prior: Literal["weights", "parts"] = "weights"
    max_columns: int = 2000
    encoder: EncoderConfig = EncoderConfig()

    @property
    def offers(self) -> Uncertainty:
        """The posterior of every weight is known, and so are errors and how they go together."""
        return _OFFERS

    @property
    def can_be_damped(self) -> bool:
        """Means are linear in the weights."""
        return True

    @property
    def learns_online(self) -> bool:
        """The posterior takes in a row at a time as well as all of them at once."""
        return True

    def __post_init__(self) -> None:
        require("l2", 0 < self.l2 < math.inf, "positive", self.l2)
        fine = 1 <= self.max_columns <= 20_000
        require("max_columns", fine, "in [1, 20000]", self.max_columns)


class RidgeOracle(TableOracle):
    """Bayesian linear regression of the reward on the columns of the chosen actions.

    With ``V = l2·I + Σ w x xᵀ`` over the rows, ``θ = V⁻¹ Σ w r x``: the mean is ``xᵀθ``, the
    covariance of two actions ``x V⁻¹ x'`` and the deviation ``sqrt(xᵀ V⁻¹ x)``, all exact and in
    units of the noise's standard deviation. A column that never occurred has the prior's variance
    and is independent of the others.

    With a prior of parts, ``l2·I`` is diagonal with ``l2 · mean over the rows of Σ x²`` for the
    columns of a part, the sum being over those of its columns that belong together (the features of
    the context, say, which are there once by themselves and once with the action's id); it is
    ``l2`` for the constants. :meth:`fit` takes the mean of its rows. Row by row the prior is
    brought up to date whenever the rows have become half as many again, and what was learned is
    kept: the posterior is that of all rows so far under the new prior.

    What is kept is a root S of the posterior's covariance, ``V⁻¹ = S Sᵀ``, so that no variance can
    come out negative and no rounding builds up over updates. A batch with Gram matrix G multiplies
    it by the inverse Cholesky factor of ``I + Sᵀ G S``; a single row by Potter's update
    ``S ← S (I - γ f fᵀ)`` with ``f = Sᵀx``, ``α = 1 / (1/w + fᵀf)``, ``γ = α / (1 + sqrt(α/w))``.

    Columns beyond `max_columns` are refused. To keep only variances instead would be quick, but
    wrong in a way that no test notices: features that occur together, as a context's and its
    products with an action do, have errors that cancel, and exploration that ignores this is many
    times too wide or, along other directions, too narrow.

    Attributes
    ----------
    weights_
        θ on all columns, shape (2**bits,), float64; None before :meth:`fit`.
    columns_
        Indices of the m columns that occurred in training, shape (m,).
    root_
        S on these, shape (m, m).
    precisions_
        Of the prior, for the columns of each of the encoder's parts, shape (4,).
    norms_
        Mean squared norms of these parts over the rows, shape (4,); 0 without a prior of parts.

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equations 3.53 and 3.54; Bierman,
    "Factorization Methods for Discrete Sequential Estimation", 1977, section V.2 (Potter's update).
    """

    config: RidgeConfig
    weights_: NDArray[np.float64] | None

    def __init__(self, config: RidgeConfig, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self.columns_: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.root_: NDArray[np.float64] = np.empty((0, 0))
        self.precisions_: NDArray[np.float64] = np.full(PARTS, config.l2)
        self._slots: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._parts: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._norms = _Norms()
        # Of what doesn't learn row by row, which would have to keep it up to date.
        self._covariance: NDArray[np.float64] | None = None

    @property
    def norms_(self) -> NDArray[np.float64]:
        """Mean squared norms of the parts, shape (PARTS,)."""
        return self._norms.means()

    def fit(self, rows: Sequence[TrainingRow]) -> RidgeOracle:
        """Learn from interactions; their order makes no difference beyond rounding.

        Raises
        ------
        NotEnoughDataError
            If there are no rows.
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If there are too many columns, or the numbers are too large for the penalty.
        """
        config = self.config
        parts = config.prior == "parts"
        moments = moments_of(self._encoder, rows, most=config.max_columns, parts=parts)
        if not self.fit_moments(moments):
            self._fit_in_blocks(designs_of(self._encoder, rows, parts=parts))
        return self

    def fit_moments(self, moments: Moments) -> bool:
        """Learn from what is left of rows, as :meth:`fit` does of the rows themselves.

        Returns
        -------
        bool
            False where the digits don't do, since some columns are enormous beside others: then
            the oracle is not fitted, and the rows have to be gone through.

        Raises
        ------
        TooManyColumnsError, GenerationError
            As :meth:`fit`.
        """
        require_room(len(moments.columns), self.config.max_columns)
        self._forget()
        if self.config.prior == "parts":
            self._norms = _Norms.of_all(moments.weight, moments.norms)
            self.precisions_ = self._norms.precisions(self.config.l2)
        order = np.argsort(moments.columns)
        self._add(moments.columns[order], moments.parts[order])
        scale = np.diagonal(self.root_)
        with np.errstate(over="ignore", invalid="ignore"):
            inner = scale[:, None] * scale * moments.gram[np.ix_(order, order)]
            solved = _by_gram(inner, scale * moments.products[order])
        if solved is None:
            return False
        self._fitted(lambda: self._turn(solved))
        return True

    def partial_fit(self, rows: Sequence[TrainingRow]) -> RidgeOracle:
        """Learn from further interactions: the posterior is that of all rows so far.

        With no rows, an oracle that was not fitted starts from the prior. A row takes time with the
        square of the number of columns; many rows are taken in at once.

        Raises
        ------
        InvalidInputError
            If a row's chosen index, propensity, reward or weight can't be.
        GenerationError
            If there are too many columns, or the numbers are too large for the penalty.
        """
        check_rows(rows, some=False)
        if self.weights_ is None:
            self._forget()
        if rows:
            design = self._design(rows)
            new = int(np.count_nonzero(self._slots[design.columns] == _NO_COLUMN))
            require_room(len(self.columns_) + new, self.config.max_columns)
            self._covariance = None
            self._absorb(design)
        return self

    def score_encoded(self, decision: EncodedDecision) -> NDArray[np.float64]:
        """As :meth:`score`, for features that are encoded already."""
        if self.weights_ is None:
            raise not_fitted()
        return self._encoder.linear_scores(self.weights_, decision)

    def estimate_encoded(
        self, decision: EncodedDecision, needs: Uncertainty = frozenset()
    ) -> Estimates:
        """As :meth:`estimate`, for features that are encoded already."""
        mean = self.score_encoded(decision)
        wanted = needs & _OFFERS
        if not wanted:
            return Estimates(mean)
        if "covariance" not in wanted and self._covariance is not None:
            variance = self._encoder.linear_variances(
                self._slots, self._covariance, self.precisions_, decision
            )
            if variance is not None:
                return Estimates(mean, np.sqrt(variance))
        parts = self.config.prior == "parts"
        columns = self._encoder.decision_columns(decision, parts=parts)
        slots = self._slots[columns.indices]
        # Sparse times dense is plain C in SciPy: a threaded BLAS gains nothing at this size, and
        # its threads wait for each other where the machine is busy.
        whitened = _known(columns, slots, (mean.size, len(self.columns_))) @ self.root_
        unseen = None
        if slots.size and slots.min() < 0:
            unseen = _unseen(columns, slots, mean.size, self.precisions_)
        covariance = None
        if "covariance" in needs:
            covariance = whitened @ whitened.T
            if unseen is not None:
                covariance += (unseen @ unseen.T).toarray()
            variance = np.diagonal(covariance)
        else:
            variance = np.einsum("km,km->k", whitened, whitened)
            if unseen is not None:
                variance = variance + unseen.power(2).sum(axis=1)
        deviation = np.sqrt(variance) if "deviation" in needs else None
        return Estimates(mean, deviation, covariance)

    def settle(self) -> None:
        """Work out the covariance: a variance is then had from a decision's own columns alone.

        It makes no difference but for rounding and time. Whoever is fitted or saved has done so.
        """
        if self._covariance is None and len(self.columns_) <= _KEPT:
            self._covariance = self.root_ @ self.root_.T

    def goes_with(self, other: object) -> bool:
        """Whether both are fitted, with one configuration."""
        return (
            isinstance(other, RidgeOracle)
            and self.config == other.config
            and self.weights_ is not None
            and other.weights_ is not None
        )

    def towards(self, other: RidgeOracle, step: float) -> RidgeOracle:
        """As :meth:`~croupier.policy.oracle.Dampable.towards`.

        Of columns that this one alone has met, the other one knows nothing but the prior, and no
        more is known on the way.
        """
        require_way(self, other)
        assert self.weights_ is not None, "both are fitted"
        assert other.weights_ is not None, "both are fitted"
        between = RidgeOracle(self.config, random_state=other.random_state)
        between.restore(other.arrays())
        assert between.weights_ is not None, "it was restored"
        unmet = np.setdiff1d(self.columns_, other.columns_)
        between._add(unmet, self._parts[self._slots[unmet]])
        between.weights_[:] = (1.0 - step) * self.weights_ + step * other.weights_
        between.settle()
        return between

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The columns that occurred, their weights and the root of their covariance."""
        if self.weights_ is None:
            raise not_fitted()
        # What is read back is asked as what was saved, bit for bit.
        self.settle()
        columns = self.columns_
        arrays: dict[str, NDArray[Any]] = {
            "index": columns.astype(np.uint32),
            "value": self.weights_[columns],
            "root": self.root_,
        }
        if self.config.prior == "parts":
            arrays |= {
                "parts": self._parts,
                "precisions": self.precisions_,
                "norms": self._norms.array(),
            }
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        columns, value = arrays["index"].astype(np.int64, casting="safe"), arrays["value"]
        root = arrays["root"].astype(np.float64, casting="safe")
        if value.shape != columns.shape or root.shape != (*columns.shape, *columns.shape):
            raise ValueError("expected a weight for every column, and a square root over them")
        if len(np.unique(columns)) != len(columns) or (columns < 0).any():
            raise ValueError("expected every column once")
        if not (np.isfinite(value).all() and np.isfinite(root).all()):
            raise GenerationError("the oracle has numbers that are not finite")
        self._forget()
        if self.config.prior == "parts":
            self._restore_prior(arrays, len(columns))
        else:
            self._parts = np.zeros(len(columns), dtype=np.uint8)
        self.columns_, self.root_ = columns, np.ascontiguousarray(root)
        self._slots[columns] = np.arange(len(columns))
        self.weights_ = np.zeros(len(self._slots))
        self.weights_[columns] = value
        self.settle()

    def _restore_prior(self, arrays: Mapping[str, NDArray[Any]], columns: int) -> None:
        parts, precisions = arrays["parts"], arrays["precisions"].astype(np.float64, casting="safe")
        if parts.shape != (columns,) or (parts >= PARTS).any() or precisions.shape != (PARTS,):
            raise ValueError("expected the part of every column, and a precision for every part")
        # Written so that NaN fails.
        if not ((precisions > 0.0) & (precisions < math.inf)).all():
            raise GenerationError("the oracle has precisions that are not positive")
        self._parts, self.precisions_ = parts.astype(np.uint8, casting="safe"), precisions
        self._norms = _Norms.of(arrays["norms"])

    def _design(self, rows: Sequence[TrainingRow]) -> Design:
        return design_of(self._encoder, rows, parts=self.config.prior == "parts")

    def _forget(self) -> None:
        """Back to the prior."""
        table = 1 << self.config.encoder.bits
        self.weights_ = np.zeros(table)
        self.columns_, self.root_ = np.empty(0, dtype=np.int64), np.empty((0, 0))
        self.precisions_ = np.full(PARTS, self.config.l2)
        self._parts, self._norms = np.empty(0, dtype=np.uint8), _Norms()
        self._slots = np.full(table, _NO_COLUMN, dtype=np.int32)
        self._covariance = None

    def _fit_in_blocks(self, designs: Iterable[Design]) -> None:
        """Go on where :meth:`fit_moments` gave up, with its prior and columns."""

        def learn() -> None:
            for number, design in enumerate(designs):
                self._absorb_batch(design, self._slots[design.columns], fresh=number == 0)

        self._fitted(learn)

    def _fitted(self, learn: Callable[[], None]) -> None:
        """Learn, from the prior; what can't is not fitted."""
        try:
            learn()
        except GenerationError:
            self.weights_ = None
            raise
        self.settle()

    def _add(self, columns: NDArray[np.int64], parts: NDArray[np.uint8]) -> None:
        """Give new columns a place, with nothing known of them but the prior."""
        before, after = len(self.columns_), len(self.columns_) + len(columns)
        root = np.zeros((after, after))
        root[:before, :before] = self.root_
        np.fill_diagonal(root[before:, before:], 1.0 / np.sqrt(self.precisions_[parts]))
        self.root_ = root
        self._parts = np.concatenate([self._parts, parts])
        self.columns_ = np.concatenate([self.columns_, columns])
        self._slots[columns] = np.arange(before, after)

    def _absorb(self, design: Design) -> None:
        fresh = not len(self.columns_)
        if design.norms is not None and self._norms.count(design.norms, design.weights):
            self._renew_prior(self._norms.precisions(self.config.l2))
        new = self._slots[design.columns] == _NO_COLUMN
        if new.any():
            parts = np.zeros(len(new), dtype=np.uint8) if design.parts is None else design.parts
            self._add(design.columns[new], parts[new])
        slots = self._slots[design.columns]
        # Measured from 700 to 2000 columns, a batch takes the time of about m / 4 single rows.
        if fresh or 4 * len(design.rewards) > len(self.columns_):
            self._absorb_batch(design, slots, fresh=fresh)
        else:
            for position in range(len(design.rewards)):
                self._absorb_row(design, slots, position)

    def _absorb_batch(self, design: Design, slots: NDArray[np.int32], *, fresh: bool) -> None:
        """Take in rows at once, with R and z of :func:`_by_gram` or :func:`_by_rotation`."""
        assert self.weights_ is not None, "whoever learns has a table"
        importance = np.sqrt(design.weights)
        lines = design.matrix.multiply(importance[:, None]).tocsr()
        errors = importance * (design.rewards - design.matrix @ self.weights_[design.columns])
        # The root of the prior is diagonal.
        scale = np.diagonal(self.root_) if fresh else None
        root = self.root_
        with np.errstate(over="ignore", invalid="ignore"):
            gram, gradient = np.zeros_like(root), np.zeros(len(root))
            gram[np.ix_(slots, slots)] = (lines.T @ lines).toarray()
            gradient[slots] = lines.T @ errors
            inner = root.T @ gram @ root if scale is None else scale[:, None] * scale * gram
            solved = _by_gram(inner, root.T @ gradient) or _by_rotation(lines, errors, root[slots])
        self._turn(solved)

    def _turn(self, solved: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        """``S ← S R⁻¹`` and ``θ ← θ + S z``."""
        from scipy.linalg import solve_triangular  # noqa: PLC0415

        with np.errstate(over="ignore", invalid="ignore"):
            # Past this, the prior is lost even to a rotation. Written so that NaN fails.
            if not _EPSILON * np.linalg.norm(solved[0]) < _HOPELESS:
                raise self._too_large()
            root = solve_triangular(solved[0], self.root_.T, trans="T", check_finite=False).T
        self._move(root @ solved[1])
        self.root_ = np.ascontiguousarray(root)

    def _renew_prior(self, precisions: NDArray[np.float64]) -> None:
        """Exchange the prior: ``V + D' - D``, with ``Vθ`` as it was.

        Where rounding lets no root be taken of that, the old prior stays: it is as good a one, but
        of fewer rows.
        """
        from scipy.linalg import cholesky, solve_triangular  # noqa: PLC0415

        assert self.weights_ is not None, "whoever learns has a table"
        if len(self.columns_):
            added = (precisions - self.precisions_)[self._parts]
            try:
                inverse = np.linalg.inv(self.root_)
                precision = inverse.T @ inverse
                pull = inverse.T @ (inverse @ self.weights_[self.columns_])
                precision[np.diag_indices(len(added))] += added
                factor = cholesky(precision, lower=True, check_finite=False)
            except np.linalg.LinAlgError:
                return
            root = solve_triangular(factor, np.eye(len(added)), lower=True, check_finite=False).T
            weights = root @ (root.T @ pull)
            if not (np.isfinite(root).all() and np.isfinite(weights).all()):
                return
            self.root_, self.weights_[self.columns_] = np.ascontiguousarray(root), weights
        self.precisions_ = precisions

    def _absorb_row(self, design: Design, slots: NDArray[np.int32], position: int) -> None:
        from scipy.linalg.blas import dger  # noqa: PLC0415

        assert self.weights_ is not None, "whoever learns has a table"
        matrix, weight = design.matrix, float(design.weights[position])
        part = slice(matrix.indptr[position], matrix.indptr[position + 1])
        own, values = matrix.indices[part], matrix.data[part]
        root = self.root_
        with np.errstate(over="ignore", invalid="ignore"):
            projected = values @ root[slots[own]]
            gain = np.vecdot(root, projected)
            variance = float(projected @ projected)
        if not _EPSILON * math.sqrt(weight * variance) < _HOPELESS:
            raise self._too_large()
        alpha = 1.0 / (1.0 / weight + variance)
        gamma = alpha / (1.0 + math.sqrt(alpha / weight))
        error = float(design.rewards[position] - values @ self.weights_[design.columns[own]])
        self._move((alpha * error) * gain)
        step = max(1, _UNTHREADED // len(root))
        for start in range(0, len(root), step):
            block = slice(start, start + step)
            # In place: transposed, the block is in the order that BLAS wants.
            dger(-gamma, projected, gain[block], a=root[block].T, overwrite_a=1)

    def _move(self, step: NDArray[np.float64]) -> None:
        assert self.weights_ is not None, "whoever learns has a table"
        if not np.isfinite(step).all():
            raise self._too_large()
        self.weights_[self.columns_] += step

    def _too_large(self) -> GenerationError:
        return GenerationError(
            f"the posterior can't be computed with l2 = {self.config.l2:g}: the features or "
            f"rewards are too large; scale them down, or raise l2"
        )


class _Norms:
    """Mean squared norms of the parts of all rows so far, and when they were last made use of."""

    def __init__(self) -> None:
        self._weight = self._used = 0.0
        self._sums = np.zeros(PARTS)

    @classmethod
    def of(cls, array: NDArray[np.float64]) -> _Norms:
        """Take over what :meth:`array` gave."""
        norms = cls()
        if array.shape != (PARTS + 2,) or not (np.isfinite(array) & (array >= 0.0)).all():
            raise ValueError("expected sums of squared norms that are not negative")
        norms._weight, norms._used, norms._sums = float(array[0]), float(array[1]), array[2:].copy()
        return norms

    @classmethod
    def of_all(cls, weight: float, sums: NDArray[np.float64]) -> _Norms:
        """Of rows of a total weight, with the sums of their squared norms, made use of by now."""
        norms = cls()
        norms._weight = norms._used = weight
        norms._sums = sums.copy()
        return norms

    def array(self) -> NDArray[np.float64]:
        """All of it, shape (PARTS + 2,)."""
        return np.concatenate([[self._weight, self._used], self._sums])

    def count(self, norms: NDArray[np.float64], weights: NDArray[np.float64]) -> bool:
        """Take in rows; whether there are half as many again as when this last said so."""
        self._weight += float(weights.sum())
        self._sums += weights @ norms
        if self._weight < _MORE * self._used:
            return False
        self._used = self._weight
        return True

    def means(self) -> NDArray[np.float64]:
        """Mean squared norms, shape (PARTS,); 0 before there are rows."""
        return self._sums / self._weight if self._weight else np.zeros(PARTS)

    def precisions(self, l2: float) -> NDArray[np.float64]:
        """``l2`` times the mean squared norm of every part; ``l2`` where there is nothing yet."""
        mean = self.means()
        # Of numbers next to nothing, the square is nothing.
        return np.where(l2 * mean > _TINY, l2 * mean, l2)


def _by_gram(
    inner: NDArray[np.float64], gradient: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """R with ``RᵀR = I + SᵀGS``, and ``z = R⁻ᵀSᵀg``; None if rounding would spoil them.

    Parameters
    ----------
    inner
        ``SᵀGS`` with the Gram matrix G of the rows, shape (m, m); it is written over.
    gradient
        ``Sᵀg`` with ``g = Σ w e x`` and e what the rewards are missed by, shape (m,).
    """
    from scipy.linalg import cholesky, solve_triangular  # noqa: PLC0415

    # Next to the largest of the eigenvalues, the smallest are lost if G is: they are at least 1.
    if not _EPSILON * np.trace(inner) < _LOST:
        return None
    inner[np.diag_indices(len(inner))] += 1.0
    factor = cholesky(inner, overwrite_a=True, check_finite=False)
    return factor, solve_triangular(factor, gradient, trans="T", check_finite=False)


def _by_rotation(
    lines: Any, errors: NDArray[np.float64], root: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As :func:`_by_gram`, by a QR factorization of ``[I 0; XS e]``.

    It takes about ten times as long and loses half as many digits, as no product of X with itself
    is ever formed.

    Parameters
    ----------
    lines
        X, the rows times the square roots of their weights, sparse, shape (n, u).
    errors
        e, what they miss the rewards by, likewise, shape (n,).
    root
        The rows of S for these u columns, shape (u, m).
    """
    from scipy.linalg import qr  # noqa: PLC0415

    size = root.shape[1]
    triangle = np.eye(size + 1)
    triangle[size, size] = 0.0
    for start in range(0, len(errors), max(size, 1)):
        block = slice(start, start + size)
        added = np.column_stack([lines[block] @ root, errors[block]])
        stacked = np.concatenate([triangle, added])
        (factor,) = qr(stacked, mode="r", overwrite_a=True, check_finite=False)
        triangle = factor[: size + 1]
    return triangle[:size, :size], triangle[:size, size]


def _known(columns: DecisionColumns, slots: NDArray[np.int32], shape: tuple[int, int]) -> Any:
    """The columns that occurred in training as a sparse matrix over their places, shape (K, m)."""
    from scipy.sparse import csr_array  # noqa: PLC0415

    known = slots != _NO_COLUMN
    actions = columns.actions[known]
    order = np.argsort(actions, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(actions, minlength=shape[0]))])
    return csr_array((columns.values[known][order], slots[known][order], ends), shape=shape)


def _unseen(
    columns: DecisionColumns,
    slots: NDArray[np.int32],
    actions: int,
    precisions: NDArray[np.float64],
) -> Any:
    """The columns that didn't, times the prior's deviations, sparse over just those, (K, u)."""
    from scipy.sparse import csr_array  # noqa: PLC0415

    which = slots == _NO_COLUMN
    used, compact = np.unique(columns.indices[which], return_inverse=True)
    # Without a prior of parts all have the same precision. A column that is in several has that of
    # the lowest.
    part = np.zeros(len(used), dtype=np.intp)
    if columns.parts is not None:
        part += PARTS
        np.minimum.at(part, compact, columns.parts[which])
    deviations = 1.0 / np.sqrt(precisions[part])
    entries = (columns.values[which] * deviations[compact], (columns.actions[which], compact))
    # Made from coordinates, values of the same index are added up.
    return csr_array(entries, shape=(actions, len(used)))
