r"""Two numbers for what a log is good for: how much of the actions it shows, and how well it did.

Schweighofer et al. measure the data sets of offline reinforcement learning by the coverage of
states and actions (SACo) and by the quality of trajectories (TQ). In a bandit a trajectory is one
decision, and its return the reward; a state is a group of requests that are taken to be alike.

- ``SACo = U / E_uniform[U]``. U is the number of distinct pairs of state and action in the log. The
  reference is what a log of the same requests would show if their actions had been drawn uniformly:
  with K_i actions that are eligible in row i, and the rows of a state in the inner product::

      E_uniform[U] = Σ_s Σ_a [1 - Π_{i in s, a eligible in i} (1 - 1 / K_i)]

  About 1 of a uniform log; the smaller, the fewer of the actions a learner has seen. It is not cut
  at 1, as in the source. The source's reference is the replay buffer of an online learner; here it
  is a policy that everybody knows, so that no simulation is needed.
- ``TQ = (mean reward - v_uniform) / (v_best - v_uniform)``. v_uniform is the value of the uniform
  policy and v_best that of the best policy that was evaluated, both by SNIPS on the same rows: 0 of
  a log that earns no more than uniform draws, 1 of one that earns what the best policy would. A
  policy that is much better than what made the log shows in a small TQ.

Source: Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning", CoLLAs 2022
(arXiv 2111.04714), equations of TQ and SACo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ("Coverage", "Quality", "coverage", "quality", "request_states")

_decoder = msgspec.json.Decoder(Features)
_CLUSTERS, _SAMPLE, _BITS = 32, 20_000, 12


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Which pairs of state and action a log shows.

    Attributes
    ----------
    states
        Number of states.
    pairs
        Distinct pairs of state and action in the log, U.
    expected
        Those that uniform draws on the same requests show in the mean.
    eligible
        Those that could have been drawn at all.
    saco
        ``pairs / expected``.
    """

    states: int
    pairs: int
    expected: float
    eligible: int
    saco: float


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What a log is good for.

    Attributes
    ----------
    state
        What a state is: ``context``, ``cluster``, or what rows were grouped by.
    coverage
        Of states and actions.
    logged, uniform, best
        Mean reward of the log, value of the uniform policy, and the highest of the evaluated
        policies', on `rows` rows; None if the log can't tell.
    best_policy
        Whose that is.
    rows
        Interactions that tell about all of these policies.
    tq
        ``(logged - uniform) / (best - uniform)``; None unless the best is better than uniform.
    """

    state: str
    coverage: Coverage
    rows: int
    logged: float | None = None
    uniform: float | None = None
    best: float | None = None
    best_policy: str | None = None
    tq: float | None = None


def coverage(interactions: pl.DataFrame, states: NDArray[np.int64]) -> Coverage:
    """Measure how much of states and actions a log covers.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    states
        State of every row, integers, shape (n,).

    Raises
    ------
    InvalidInputError
        If there are no rows, or the shapes don't go together.
    """
    n = len(interactions)
    if n == 0 or states.shape != (n,):
        raise InvalidInputError(
            "states", f"expected shape ({n},) of at least 1, got {states.shape}"
        )
    rows = interactions.select("action_id", "action_ids", "excluded").with_columns(
        state=pl.Series(states)
    )
    pairs = rows.select("state", "action_id").n_unique()
    barred = pl.col("excluded").fill_null([])
    eligible = rows.with_columns(
        eligible=pl.when(barred.list.len() > 0)
        .then(pl.col("action_ids").list.set_difference(barred))
        .otherwise("action_ids")
    ).with_columns(size=pl.col("eligible").list.len())
    # A single eligible action is certain to be seen: the logarithm of 0 is -inf, and serves.
    unseen = (
        eligible.explode("eligible")
        .group_by("state", "eligible", maintain_order=True)
        .agg(log=(1.0 - 1.0 / pl.col("size")).log().sum())
    )
    expected = float(-np.expm1(unseen["log"].to_numpy()).sum())
    return Coverage(
        states=len(np.unique(states)),
        pairs=pairs,
        expected=expected,
        eligible=len(unseen),
        saco=pairs / expected,
    )


def request_states(interactions: pl.DataFrame, *, seed: int = 0) -> tuple[str, NDArray[np.int64]]:
    """Which requests are taken to be alike: the same context, or one of the same cluster.

    Contexts that come back more often than there are actions are states themselves. Where they
    hardly come back, every log shows one action of each, and nothing could be told from that: then
    states are 32 clusters (k-means, of at most 20,000 rows) of the contexts as oracles see them.

    Parameters
    ----------
    interactions
        Rows of the interactions table.
    seed
        Of the clustering.

    Returns
    -------
    str, NDArray
        ``context`` or ``cluster``, and the states, shape (n,).
    """
    contexts = interactions["context"]
    distinct = contexts.unique(maintain_order=True)
    actions = interactions["action_ids"].list.len().mean()
    assert isinstance(actions, float)
    place = {text: code for code, text in enumerate(distinct.to_list())}
    codes = np.array([place[text] for text in contexts.to_list()], dtype=np.int64)
    if len(interactions) >= actions * len(distinct):
        return "context", codes
    return "cluster", _clusters(distinct, seed)[codes]


def quality(
    state: str, covered: Coverage, rows: int, values: Mapping[str, float], uniform: float | None
) -> Quality:
    """Put coverage and trajectory quality together.

    Parameters
    ----------
    state, covered
        What states are, and how much of them is covered.
    rows
        Interactions that `values` and `uniform` are of.
    values
        Of the policies on them; the first is the log's own mean reward.
    uniform
        Value of the uniform policy; None if the log can't tell.
    """
    found = Quality(state=state, coverage=covered, rows=rows)
    if uniform is None or not values:
        return found
    logged = next(iter(values.values()))
    best = max(values, key=lambda name: values[name])
    span = values[best] - uniform
    return msgspec.structs.replace(
        found,
        logged=logged,
        uniform=uniform,
        best=values[best],
        best_policy=best,
        tq=(logged - uniform) / span if span > 0.0 else None,
    )


def _clusters(contexts: pl.Series, seed: int) -> NDArray[np.int64]:
    """Cluster of every context, shape (n,)."""
    # Slow to import, and not needed where contexts come back.
    from scipy import sparse  # noqa: PLC0415
    from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415
    from sklearn.preprocessing import MaxAbsScaler  # noqa: PLC0415

    encoder = FeatureEncoder(EncoderConfig(bits=_BITS))
    columns, values, starts = [], [], [0]
    for text in contexts.to_list():
        try:
            found = encoder.encode_context(_decoder.decode(text))
        except InvalidInputError:
            # What no oracle can encode is alike in that.
            starts.append(starts[-1])
            continue
        columns.append(found.indices & ((1 << _BITS) - 1))
        values.append(found.values)
        starts.append(starts[-1] + len(found.values))
    table = sparse.csr_matrix(
        (
            np.concatenate([np.zeros(0), *values]),
            np.concatenate([np.zeros(0, int), *columns]),
            starts,
        ),
        shape=(len(contexts), 1 << _BITS),
    )
    table.sum_duplicates()
    scaled = MaxAbsScaler().fit_transform(table)
    means = MiniBatchKMeans(min(_CLUSTERS, len(contexts)), random_state=seed, n_init=3)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(contexts))[:_SAMPLE])
    means.fit(scaled[sample])
    return np.asarray(means.predict(scaled), dtype=np.int64)
