"""How much every interaction counts when an oracle learns from it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from croupier.offline.interactions import keep_weights, learning_weights
from croupier.policy.encoding import FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.policy.encoding import EncoderConfig
    from croupier.policy.training import TrainingConfig

__all__ = ("balancing_ratio", "effective", "training_weights")

_context_decoder = msgspec.json.Decoder(Features)

# Ridge penalty of the baseline that advantages are over, per context feature: next to nothing, but
# it makes the solution one.
_DAMPING = 1e-3


def training_weights(
    config: TrainingConfig, interactions: pl.DataFrame, encoder: EncoderConfig
) -> NDArray[np.float64]:
    """Importance of every row to an oracle, shape (n,), positive.

    With ``c = 1 / keep_prob``, and p the propensity of a row among K actions:

    - ``none``: c.
    - ``ips``: ``c · min(1 / p, largest_weight)``. A regression that minimises this sum minimises
      the mean over all actions, each counting the same, and not over those that were played.
    - ``mtr``: ``c / (p · K̄)``, with K̄ the mean number of actions: as ``ips``, not clipped, and 1 on
      average whatever the policy was, as in Vowpal Wabbit's ``--cb_type mtr``.
    - ``trajectory``: ``c · exp(g / temperature)``, where g in [0, 1] is the sum G of the rewards of
      all rows of the request (slots, positions or places), scaled by its smallest and largest.
    - ``advantage``: the same with ``G - V(context)`` in the place of G, where V is the linear
      regression of G on the context's features.

    The last two learn what good requests have in common rather than the mean reward: an estimate
    is the mean of ``r exp(g / temperature)`` over that of ``exp(g / temperature)``, which is
    larger. Whoever wants rewards of them has them calibrated. In a bandit ``trajectory`` favours
    contexts that are lucky anyway, which ``advantage`` takes out.

    But for ``mtr`` the weights sum to the effective sample size (Kish), see
    :func:`~croupier.offline.interactions.learning_weights`.

    Parameters
    ----------
    config
        Says which of these.
    interactions
        Rows of the interactions table, of one loop.
    encoder
        Of the loop's oracle; makes the context's features.

    References
    ----------
    Bietti, Agarwal and Langford, "A Contextual Bandit Bake-off", 2021, section 2.3 (mtr); Hong,
    Agrawal, Tachet des Combes and Laroche, "Harnessing Mixed Offline Reinforcement Learning
    Datasets via Trajectory Weighting", 2023, section 4.
    """
    if interactions.is_empty():
        return np.empty(0)
    kept = keep_weights(interactions)
    if config.weighting == "none":
        return learning_weights(interactions)
    if config.weighting in ("ips", "mtr"):
        inverse = 1.0 / interactions["propensity"].to_numpy()
        if config.weighting == "ips":
            return effective(kept * np.minimum(inverse, config.largest_weight))
        actions = interactions["action_ids"].list.len().to_numpy()
        return np.asarray(
            learning_weights(interactions) * inverse / np.average(actions, weights=kept)
        )
    gained = interactions.select(pl.col("reward").sum().over("decision_id"))["reward"].to_numpy()
    if config.weighting == "advantage":
        gained = gained - _expected(gained, interactions, encoder, kept)
    spread = float(np.ptp(gained))
    scaled = (gained - gained.min()) / spread if spread > 0.0 else np.zeros(len(gained))
    # Relative to the best row, so that nothing overflows.
    return effective(kept * np.exp((scaled - 1.0) / config.temperature))


def effective(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights in the same proportions, which sum to their effective sample size ``(Σw)² / Σw²``.

    Where all are the same, every one is exactly 1.
    """
    relative = weights / weights.max()
    return np.asarray(relative * (relative.sum() / (relative @ relative)))


def balancing_ratio(rewards: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """How much a row with reward 1 must count for one with reward 0, for both to sum to the same.

    Raises
    ------
    GenerationError
        If there are rewards other than 0 and 1.
    NotEnoughDataError
        If there is only one of them.
    """
    positive = rewards == 1.0
    if not (positive | (rewards == 0.0)).all():
        raise GenerationError(
            "training.class_weight: expected none where rewards are other than 0 and 1, "
            "got balanced"
        )
    ones, zeros = float(weights[positive].sum()), float(weights[~positive].sum())
    if ones == 0.0 or zeros == 0.0:
        raise NotEnoughDataError("rewards of 1 and 0 can't be balanced: there is only one kind")
    return zeros / ones


def _expected(
    gained: NDArray[np.float64],
    interactions: pl.DataFrame,
    config: EncoderConfig,
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Linear regression of what was gained on the context's features, shape (n,)."""
    from scipy.sparse.linalg import lsqr  # noqa: PLC0415 - slow to import, and only to learn

    root = np.sqrt(weights)
    features = _context_features(interactions, config)
    solved = lsqr(features.multiply(root[:, None]).tocsr(), root * gained, damp=_DAMPING)
    return np.asarray(features @ solved[0])


def _context_features(interactions: pl.DataFrame, config: EncoderConfig) -> Any:
    """Features of every row's context, with a constant; sparse, shape (n, number of columns)."""
    from scipy.sparse import csr_array  # noqa: PLC0415

    encoder = FeatureEncoder(config)
    nothing = encoder.encode_context({})
    encoded = []
    for context in interactions["context"]:
        features = nothing
        # A row that can't be encoded isn't learned from; here it counts as one without features.
        with contextlib.suppress(InvalidInputError):
            features = encoder.encode_context(_context_decoder.decode(context))
        encoded.append(features)
    indices = np.concatenate([each.indices for each in encoded]) & encoder.mask
    used, compact = np.unique(indices, return_inverse=True)
    values = np.concatenate([each.values for each in encoded]).astype(np.float64)
    ends = np.concatenate([[0], np.cumsum([len(each.indices) for each in encoded])])
    return csr_array((values, compact, ends), shape=(len(encoded), len(used)))
