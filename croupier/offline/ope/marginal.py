"""Many actions: weights of what actions have in common instead of weights of actions.

With thousands of actions every weight is large or 0. If actions act on the reward only through an
embedding e (a cluster, a category), the marginal weight

``w(x, e) = p(e|x, pi) / p(e|x, mu)``, with ``p(e|x, pi) = sum_a pi(a|x) p(e|x, a)``,

does as well as that of the action and varies far less. Where the embedding leaves something out,
the estimate is biased by the part of the reward that it doesn't explain.

Source: Saito & Joachims, "Off-Policy Evaluation for Large Action Spaces via Embeddings", ICML 2022
(MIPS). A batch of :func:`marginalise` goes into any estimator: :class:`IPS` is MIPS, and
:class:`SNIPS` its self-normalised form. With predictions of a reward model for every action,
:class:`DR` is OffCEM (Saito, Ren & Joachims, ICML 2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.offline.ope.batches import LoggedBatch
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("embedding_chances", "marginalise")

_SUM = 1e-6


def marginalise(
    *,
    reward: ArrayLike,
    embedding: ArrayLike,
    logging: ArrayLike,
    target: ArrayLike,
    chances: ArrayLike,
    keep_prob: ArrayLike | None = None,
    q_logged: ArrayLike | None = None,
    q_target: ArrayLike | None = None,
) -> LoggedBatch:
    """Rows with the marginal probabilities of their embeddings in place of those of actions.

    Parameters
    ----------
    reward
        Shape (n,).
    embedding
        Which embedding the logged action had, integers in [0, E), shape (n,).
    logging, target
        Both policies' pmfs, shape (n, K); each row sums to 1.
    chances
        Probability of each embedding for each action, shape (K, E) (rows sum to 1); or the cluster
        of each action, integers of shape (K,).
    keep_prob, q_logged, q_target
        As in :class:`~croupier.offline.ope.LoggedBatch`.

    Returns
    -------
    LoggedBatch
        With ``propensity = p(e|x, mu)`` and ``target_probability = p(e|x, pi)``.

    Raises
    ------
    InvalidInputError
        If a shape or a value is another one; it names the argument.
    """
    table = _table(chances)
    actions, embeddings = table.shape
    seen = _integers("embedding", embedding, embeddings)
    pmfs = []
    for name, given in (("logging", logging), ("target", target)):
        pmf = np.asarray(given, dtype=np.float64)
        if pmf.shape != (len(seen), actions):
            raise InvalidInputError(name, f"expected shape {(len(seen), actions)}, got {pmf.shape}")
        _require_pmfs(name, pmf)
        pmfs.append(pmf)
    of_seen = table[:, seen]
    marginals = [np.einsum("nk,kn->n", pmf, of_seen) for pmf in pmfs]
    if (marginals[0] <= 0.0).any():
        row = int(np.argmin(marginals[0]))
        raise InvalidInputError(
            "embedding", f"expected one that the logging policy can give, not so in row {row}"
        )
    return LoggedBatch(
        reward=np.asarray(reward),
        propensity=np.minimum(marginals[0], 1.0),
        target_probability=np.minimum(marginals[1], 1.0),
        keep_prob=None if keep_prob is None else np.asarray(keep_prob),
        q_logged=None if q_logged is None else np.asarray(q_logged),
        q_target=None if q_target is None else np.asarray(q_target),
    )


def embedding_chances(
    action: ArrayLike, embedding: ArrayLike, shape: tuple[int, int], *, smoothing: float = 0.0
) -> FloatArray:
    """Estimate ``p(e|a)`` from logged pairs, for embeddings that don't depend on the context.

    ``(n_ae + smoothing) / (n_a + E smoothing)``; an action that was never logged gets 1 / E.

    Parameters
    ----------
    action, embedding
        Logged pairs, integers, shape (n,).
    shape
        Number of actions and of embeddings, K and E.
    smoothing
        Pseudo-rows of every pair, at least 0.

    Returns
    -------
    FloatArray
        Shape (K, E), rows sum to 1.

    Raises
    ------
    InvalidInputError
        If a shape or a value is another one; it names the argument.
    """
    if smoothing < 0.0:
        raise InvalidInputError("smoothing", f"expected a number >= 0, got {smoothing}")
    actions = _integers("action", action, shape[0])
    embeddings = _integers("embedding", embedding, shape[1])
    if len(actions) != len(embeddings):
        raise InvalidInputError("embedding", f"expected {len(actions)} rows, got {len(embeddings)}")
    counts = np.full(shape, smoothing, dtype=np.float64)
    np.add.at(counts, (actions, embeddings), 1.0)
    rows = counts.sum(axis=1, keepdims=True)
    table: FloatArray = np.full(shape, 1.0 / shape[1])
    np.divide(counts, rows, out=table, where=rows > 0.0)
    return table


def _table(chances: ArrayLike) -> FloatArray:
    """Probabilities of embeddings, shape (K, E), from the same or from clusters."""
    given = np.asarray(chances)
    if given.ndim == 1:
        clusters = _integers("chances", given, int(given.max(initial=0)) + 1)
        return np.eye(int(clusters.max(initial=0)) + 1, dtype=np.float64)[clusters, :]
    if given.ndim != 2:
        raise InvalidInputError("chances", f"expected shape (K, E) or (K,), got {given.shape}")
    table = given.astype(np.float64)
    _require_pmfs("chances", table)
    return table


def _integers(name: str, given: ArrayLike, below: int) -> NDArray[np.intp]:
    values = np.asarray(given)
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise InvalidInputError(name, f"expected integers of shape (n,), got {values.dtype}")
    if ((values < 0) | (values >= below)).any():
        raise InvalidInputError(name, f"expected values in [0, {below})")
    return values.astype(np.intp)


def _require_pmfs(name: str, pmf: FloatArray) -> None:
    if not (pmf >= 0.0).all() or (np.abs(pmf.sum(axis=1) - 1.0) > _SUM).any():
        raise InvalidInputError(name, "expected probabilities that sum to 1 in every row")
