"""Sequential evaluation, against loops, against one-step estimators, and in worlds that are known.

Statistical tests have fixed seeds. Those of means let 4 standard errors pass, which 6 in 100,000
fair samples exceed; those of coverage let pass what 1 in 1,000 fair ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.tree import DecisionTreeRegressor

from croupier.offline.ope import (
    DR,
    IPS,
    SESSION_ESTIMATORS,
    SNDR,
    SNIPS,
    LoggedBatch,
    SessionBatch,
    SessionEstimator,
    SessionLog,
    fit_critic,
    fit_state_weights,
    folds_of,
)
from croupier.offline.ope.session_models import Critic
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

STATES, ACTIONS, HORIZON, DISCOUNT = 4, 3, 6, 0.9
ENDED = STATES


@dataclass(frozen=True)
class World:
    """A Markov decision process of a few states; the last state is the end of a session."""

    moves: FloatArray  # (S, A, S + 1)
    rewards: FloatArray  # (S, A)
    logging: FloatArray  # (S, A)
    target: FloatArray  # (S, A)

    @classmethod
    def drawn(cls, seed: int, apart: float = 1.0) -> World:
        rng = np.random.default_rng(seed)
        moves = rng.dirichlet(np.full(STATES + 1, 0.7), size=(STATES, ACTIONS))
        moves[:, :, ENDED] *= 0.3
        moves /= moves.sum(-1, keepdims=True)
        logging = rng.dirichlet(np.full(ACTIONS, 4.0), size=STATES)
        other = rng.dirichlet(np.full(ACTIONS, 4.0), size=STATES)
        target = (1.0 - apart) * logging + apart * other
        return cls(moves, rng.uniform(-1.0, 2.0, (STATES, ACTIONS)), logging, target)

    def critic(self, policy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Exact q (T, S, A) and v (T + 1, S + 1)."""
        q = np.zeros((HORIZON, STATES, ACTIONS))
        v = np.zeros((HORIZON + 1, STATES + 1))
        for step in reversed(range(HORIZON)):
            q[step] = self.rewards + DISCOUNT * self.moves @ v[step + 1]
            v[step, :STATES] = (policy * q[step]).sum(-1)
        return q, v

    def occupancy(self, policy: FloatArray) -> FloatArray:
        """Chances of the states at every step, (T, S)."""
        chances = np.zeros((HORIZON, STATES))
        chances[0] = 1.0 / STATES
        for step in range(1, HORIZON):
            taken = chances[step - 1][:, None] * policy
            chances[step] = np.einsum("sa,sat->t", taken, self.moves)[:STATES]
        return chances

    @property
    def value(self) -> float:
        return float(self.critic(self.target)[1][0, :STATES].mean())

    def log(self, n: int, rng: np.random.Generator, noise: float = 0.5) -> SessionLog:
        at = rng.integers(STATES, size=n)
        state = np.zeros((n, HORIZON, STATES))
        action = np.zeros((n, HORIZON), dtype=np.int64)
        reward, propensity = np.zeros((n, HORIZON)), np.ones((n, HORIZON))
        target = np.full((n, HORIZON, ACTIONS), 1.0 / ACTIONS)
        steps = np.zeros(n, dtype=np.int64)
        for step in range(HORIZON):
            live = np.flatnonzero(at != ENDED)
            here = at[live]
            steps[live] += 1
            state[live, step, here] = 1.0
            taken = _draw(self.logging[here], rng)
            action[live, step] = taken
            propensity[live, step] = self.logging[here, taken]
            target[live, step] = self.target[here]
            reward[live, step] = self.rewards[here, taken] + noise * rng.standard_normal(len(live))
            at[live] = _draw(self.moves[here, taken], rng)
        return SessionLog(
            state=state,
            action=action,
            target=target,
            reward=reward,
            propensity=propensity,
            steps=steps,
        )

    def known(self, log: SessionLog) -> tuple[Critic, FloatArray]:
        """The exact critic's and state weights' values in a log."""
        q, v = self.critic(self.target)
        at = log.state.argmax(-1)
        times = np.arange(HORIZON)
        weight = self.occupancy(self.target) / self.occupancy(self.logging)
        return Critic(q[times, at, log.action], v[times, at]), weight[times, at]


def _draw(pmf: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    below = pmf.cumsum(-1) < rng.random(len(pmf))[:, None]
    drawn: NDArray[np.int64] = np.minimum(below.sum(-1), pmf.shape[1] - 1).astype(np.int64)
    return drawn


def _estimator(name: str) -> SessionEstimator:
    return SessionEstimator.named(name, horizon=HORIZON, discount=DISCOUNT)


def _batch(seed: int, n: int = 40) -> SessionBatch:
    world = World.drawn(seed)
    log = world.log(n, np.random.default_rng(seed + 1))
    return log.batch(*world.known(log))


def _by_loops(name: str, batch: SessionBatch) -> float:
    """The definition, one session and step after the other."""
    weights, normalised, control = SESSION_ESTIMATORS[name]
    assert batch.steps is not None
    n = len(batch)
    weight = np.ones((n, HORIZON + 1))
    for i in range(n):
        product = last = 1.0
        for t in range(HORIZON):
            if t < batch.steps[i]:
                ratio = batch.target_probability[i, t] / batch.propensity[i, t]
                product *= ratio
                if weights == "marginal":
                    assert batch.state_weight is not None
                    last = batch.state_weight[i, t] * ratio
                else:
                    last = product
            weight[i, t + 1] = last
    if normalised:
        weight /= weight.mean(axis=0)
    total = 0.0
    for i in range(n):
        for t in range(batch.steps[i]):
            q = batch.q_logged[i, t] if control and batch.q_logged is not None else 0.0
            v = batch.v_target[i, t] if control and batch.v_target is not None else 0.0
            total += DISCOUNT**t * (weight[i, t + 1] * (batch.reward[i, t] - q) + weight[i, t] * v)
    return total / n


@pytest.mark.parametrize("name", SESSION_ESTIMATORS)
def test_values_are_those_of_the_definition(name: str) -> None:
    batch = _batch(3)
    estimate = _estimator(name).add(batch).result()
    assert estimate.value == pytest.approx(_by_loops(name, batch), rel=1e-12)
    assert estimate.estimator == name
    assert estimate.lower < estimate.value < estimate.upper


@pytest.mark.parametrize("name", SESSION_ESTIMATORS)
def test_gradients_are_those_of_the_value(name: str) -> None:
    estimator = _estimator(name)
    mean = estimator.columns(_batch(4)).mean(axis=0)
    _, gradient = estimator.point(mean)
    for i in range(len(mean)):
        nudge = np.zeros(len(mean))
        nudge[i] = 1e-6
        slope = (estimator.point(mean + nudge)[0] - estimator.point(mean - nudge)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "of_one_step"),
    [
        ("pdis", IPS(interval="normal")),
        ("wpdis", SNIPS(interval="delta")),
        ("sdr", DR(interval="normal")),
        ("wdr", SNDR(interval="delta")),
    ],
)
def test_sessions_of_one_step_are_decisions(
    name: str, of_one_step: IPS | SNIPS | DR | SNDR
) -> None:
    rng = np.random.default_rng(5)
    columns: dict[str, Any] = {
        "reward": rng.random(50),
        "propensity": rng.uniform(0.2, 1.0, 50),
        "target_probability": rng.random(50),
        "q_logged": rng.random(50),
        "v_target": rng.random(50),
    }
    keep = rng.uniform(0.5, 1.0, 50)
    sessions = SessionBatch(**{k: v[:, None] for k, v in columns.items()}, keep_prob=keep)
    columns["q_target"] = columns.pop("v_target")
    expected = of_one_step.add(LoggedBatch(**columns, keep_prob=keep)).result()
    found = SessionEstimator.named(name, horizon=1).add(sessions).result()
    for field in ("value", "lower", "upper", "ess", "mean_weight", "max_weight", "n"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=1e-9), field


@pytest.mark.parametrize("name", SESSION_ESTIMATORS)
@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 29))
def test_merging_parts_is_adding_the_whole(name: str, seed: int, cut: int) -> None:
    world = World.drawn(seed)
    log = world.log(30, np.random.default_rng(seed))
    critic, weight = world.known(log)

    def part(rows: slice) -> SessionBatch:
        # Of other lengths, as buckets of a log are.
        length = int(log.steps[rows].max())
        return SessionBatch(
            reward=log.reward[rows, :length],
            propensity=log.propensity[rows, :length],
            target_probability=log.target_probability[rows, :length],
            steps=log.steps[rows],
            q_logged=critic.q_logged[rows, :length],
            v_target=critic.v_target[rows, :length],
            state_weight=weight[rows, :length],
        )

    whole = _estimator(name).add(part(slice(None))).result()
    first, second = (_estimator(name).add(part(s)) for s in (slice(cut), slice(cut, None)))
    merged = first.merge(second).result()
    assert merged.value == pytest.approx(whole.value, rel=1e-9)
    assert merged.lower == pytest.approx(whole.lower, rel=1e-9)
    assert merged.ess == pytest.approx(whole.ess, rel=1e-9)


@pytest.mark.parametrize("name", SESSION_ESTIMATORS)
def test_a_policy_s_own_log_tells_what_it_earned(name: str) -> None:
    """With weights of 1 the estimate without a control is the mean return."""
    world = World.drawn(6, apart=0.0)
    log = world.log(200, np.random.default_rng(7))
    _, weight = world.known(log)
    critic = Critic(np.zeros_like(log.reward), np.zeros_like(log.reward))
    returns = (np.where(log.live, log.reward, 0.0) * DISCOUNT ** np.arange(HORIZON)).sum(axis=1)
    estimate = _estimator(name).add(log.batch(critic, weight)).result()
    assert estimate.value == pytest.approx(returns.mean(), rel=1e-9)
    assert estimate.ess == pytest.approx(200)


@pytest.mark.parametrize("name", SESSION_ESTIMATORS)
def test_intervals_cover_the_value_of_a_known_world(name: str) -> None:
    """400 logs of 300 sessions; 95% intervals with the exact critic and weights."""
    world = World.drawn(8)
    rng = np.random.default_rng(9)
    found = []
    for _ in range(400):
        log = world.log(300, rng)
        found.append(_estimator(name).add(log.batch(*world.known(log))).result())
    values = np.array([each.value for each in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    # What is normalised has a bias of the order of 1/n: a twentieth of the standard deviation.
    assert abs(values.mean() - world.value) < 4.0 * error + 0.05 * values.std()
    covered = sum(each.lower <= world.value <= each.upper for each in found)
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.001


def test_marginal_weights_and_critics_make_estimates_exact_sooner() -> None:
    """Standard deviations over 200 logs: each help is one, and both together the best."""
    world = World.drawn(8)
    rng = np.random.default_rng(10)
    values: dict[str, list[float]] = {name: [] for name in SESSION_ESTIMATORS}
    for _ in range(200):
        log = world.log(300, rng)
        batch = log.batch(*world.known(log))
        for name, of_name in values.items():
            of_name.append(_estimator(name).add(batch).result().value)
    spread = {name: float(np.std(of_name)) for name, of_name in values.items()}
    assert spread["wpdis"] < spread["pdis"]
    assert spread["mis"] < spread["pdis"]
    assert spread["sdr"] < spread["pdis"]
    assert spread["mdr"] < min(spread["sdr"], spread["mis"])


@pytest.mark.parametrize("wrong", ["critic", "weights"])
def test_one_of_critic_and_weights_may_be_wrong(wrong: str) -> None:
    """The value is right if the other is; without the control, wrong weights mislead."""
    world = World.drawn(11)
    rng = np.random.default_rng(12)
    log = world.log(20_000, rng)
    critic, weight = world.known(log)
    if wrong == "critic":
        critic = Critic(*(each + rng.uniform(-1.0, 1.0, each.shape) for each in critic))
    else:
        weight = weight + 0.5 * log.state[:, :, :2].sum(axis=-1)
    estimates = {
        name: _estimator(name).add(log.batch(critic, weight)).result() for name in ("mis", "mdr")
    }
    error = {n: (e.upper - e.lower) / (2 * 1.96) for n, e in estimates.items()}
    assert abs(estimates["mdr"].value - world.value) < 4.0 * error["mdr"]
    off = abs(estimates["mis"].value - world.value) > 4.0 * error["mis"]
    assert off == (wrong == "weights")
    assert estimates["mis"].doubts == ("own-expectation",)
    assert estimates["mdr"].doubts == ()


def test_what_is_learned_of_a_log_serves_as_well_as_the_truth() -> None:
    """Fitted critics and weights come near the exact ones, and intervals cover (60 logs)."""
    world = World.drawn(13)
    rng = np.random.default_rng(14)
    tree = DecisionTreeRegressor(min_samples_leaf=10, random_state=0)
    names = ("wdr", "mdr", "wmdr")
    covered = dict.fromkeys(names, 0)
    critic_errors, weight_errors = [], []
    for _ in range(60):
        log = world.log(600, rng)
        fold = folds_of(len(log), 3, rng)
        critic = fit_critic(log, tree, fold=fold, discount=DISCOUNT)
        weight = fit_state_weights(log, tree, fold=fold)
        exact_critic, exact_weight = world.known(log)
        critic_errors.append((critic.q_logged - exact_critic.q_logged)[log.live])
        weight_errors.append((weight - exact_weight)[log.live])
        batch = log.batch(critic, weight)
        for name in names:
            estimate = _estimator(name).add(batch).result()
            covered[name] += estimate.lower <= world.value <= estimate.upper
    assert np.sqrt(np.mean(np.concatenate(critic_errors) ** 2)) < 0.35
    assert np.sqrt(np.mean(np.concatenate(weight_errors) ** 2)) < 0.25
    for name in names:
        assert stats.binomtest(covered[name], 60, 0.95).pvalue > 0.001, name


def test_no_session_is_seen_by_its_own_models() -> None:
    """A reward that is changed changes predictions of other folds alone."""
    world = World.drawn(15)
    log = world.log(90, np.random.default_rng(16))
    fold = folds_of(len(log), 3, np.random.default_rng(17))
    tree = DecisionTreeRegressor(min_samples_leaf=3, random_state=0)
    reward = log.reward.copy()
    reward[0] += 100.0
    changed = SessionLog(
        state=log.state,
        action=log.action,
        target=log.target,
        reward=reward,
        propensity=log.propensity,
        steps=log.steps,
    )
    before, after = (fit_critic(each, tree, fold=fold) for each in (log, changed))
    same = (before.q_logged == after.q_logged).all(axis=1)
    assert same[fold == fold[0]].all()
    assert not same[fold != fold[0]].all()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("reward", np.zeros(3), "shape"),
        ("reward", np.full((2, 3), np.nan), "finite"),
        ("propensity", np.zeros((2, 3)), r"\(0, 1\]"),
        ("target_probability", np.full((2, 3), 1.5), r"\[0, 1\]"),
        ("steps", np.array([0, 3]), "1 to 3"),
        ("steps", np.array([1.0, 3.0]), "integers"),
        ("q_logged", np.zeros((2, 3)), "neither"),
        ("state_weight", np.full((2, 3), -1.0), "at least 0"),
        ("keep_prob", np.zeros(2), r"\(0, 1\]"),
        ("keep_prob", np.ones(3), "shape"),
    ],
)
def test_what_no_batch_can_be_is_refused(field: str, value: FloatArray, expected: str) -> None:
    fields: dict[str, Any] = {
        "reward": np.zeros((2, 3)),
        "propensity": np.ones((2, 3)),
        "target_probability": np.ones((2, 3)),
        field: value,
    }
    wrong = "v_target" if field == "q_logged" else field
    with pytest.raises(InvalidInputError, match=rf"^{wrong}: .*{expected}"):
        SessionBatch(**fields)


def test_what_stands_beyond_the_end_does_not_matter() -> None:
    batch = SessionBatch(
        reward=np.array([[1.0, np.nan]]),
        propensity=np.array([[0.5, 0.0]]),
        target_probability=np.array([[0.25, 7.0]]),
        steps=np.array([1]),
    )
    assert batch.weights("cumulative", 4).tolist() == [[0.5] * 4]


@pytest.mark.parametrize(
    ("name", "missing"), [("mis", "state_weight"), ("sdr", "q_logged"), ("mdr", "q_logged")]
)
def test_what_an_estimator_needs_is_asked_for(name: str, missing: str) -> None:
    ones = np.ones((2, HORIZON))
    weight = None if missing == "state_weight" else ones
    batch = SessionBatch(reward=ones, propensity=ones, target_probability=ones, state_weight=weight)
    with pytest.raises(InvalidInputError, match=f"^{missing}: "):
        _estimator(name).add(batch)


def test_a_policy_that_takes_none_of_the_courses_has_no_normalised_value() -> None:
    ones = np.ones((2, HORIZON))
    batch = SessionBatch(reward=ones, propensity=ones, target_probability=0.0 * ones)
    with pytest.raises(NotEnoughDataError, match="none of the logged"):
        _estimator("wpdis").add(batch).result()
    with pytest.raises(InvalidInputError, match=r"^name: expected one of pdis"):
        _estimator("ips")


def test_models_need_sessions_in_every_fold() -> None:
    log = World.drawn(18).log(6, np.random.default_rng(19))
    one_fold = np.zeros(6, dtype=np.intp)
    tree = DecisionTreeRegressor()
    with pytest.raises(NotEnoughDataError, match="more than one fold"):
        fit_critic(log, tree, fold=one_fold)
    with pytest.raises(NotEnoughDataError, match="more than one fold"):
        fit_state_weights(log, tree, fold=one_fold)
