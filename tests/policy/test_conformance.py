"""The conformance checker passes what conforms and finds what doesn't, also from the shell."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from croupier.policy.conformance import check_exploration
from croupier.policy.estimates import Estimates
from croupier.policy.exploration import (
    Bagging,
    Conservative,
    Cover,
    Custom,
    EpsilonGreedy,
    Exploration,
    Falcon,
    FastCB,
    Greedy,
    RegCB,
    Softmax,
    SquareCB,
    Thompson,
    Uniform,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

OURS: list[Exploration] = [
    Uniform(),
    Greedy(),
    EpsilonGreedy(epsilon=0.1),
    Softmax(temperature=0.05),
    SquareCB(),
    SquareCB(gamma_scale=1e300),
    Falcon(),
    FastCB(),
    FastCB(gamma=3.0, reward_min=-1.0, reward_max=2.0),
    SquareCB(floor=0.03),
    SquareCB(gamma_scale=100.0, optimism=0.01),
    SquareCB(gamma_scale=1e300, optimism=1e300, floor=0.01),
    FastCB(floor=0.05, floor_method="mix"),
    Softmax(floor=0.5),
    RegCB(),
    RegCB(variant="optimistic", floor=0.01),
    Bagging(),
    Bagging(floor=0.01, floor_method="mix"),
    Cover(),
    Cover(epsilon=0.1),
    Thompson(),
    Thompson(correlated=False, floor=0.001),
    Conservative(inner=SquareCB()),
    Conservative(inner=RegCB(floor=0.01), radius=1.0, floor=0.01),
    Conservative(inner=SquareCB(optimism=0.1), floor=0.01),
]


@pytest.mark.parametrize("exploration", OURS, ids=lambda each: each.describe())
def test_ours_conform(exploration: Exploration) -> None:
    failed = [finding for finding in check_exploration(exploration) if not finding.passed]
    assert failed == []


class Proportional:
    """A conforming exploration of a user's: probabilities in proportion to ranks of scores."""

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        weights = 1.0 + (scores[:, None] > scores).sum(axis=1) * min(training_rows, 1)
        return np.asarray(weights / weights.sum())


class Curious:
    """Asks for standard errors: the more uncertain, the likelier."""

    needs = frozenset({"deviation"})

    def probabilities(self, estimates: Estimates, training_rows: int) -> FloatArray:
        assert estimates.deviation is not None
        odds = 0.1 + estimates.deviation
        return np.asarray(odds / odds.sum())


class Content:
    """Makes use of standard errors if there are any."""

    wants = frozenset({"deviation"})

    def probabilities(self, estimates: Estimates, training_rows: int) -> FloatArray:
        if estimates.deviation is None:
            return np.full(estimates.mean.size, 1.0 / estimates.mean.size)
        return Curious().probabilities(estimates, training_rows)


class Careless(Curious):
    """Relies on what it only wants."""

    needs = frozenset()
    wants = frozenset({"deviation"})


class Demanding(Curious):
    """Needs something that there isn't."""

    needs = frozenset({"crystal ball"})


class Wishing(Content):
    """Wants something that there isn't."""

    wants = frozenset({"crystal ball"})


class FirstTie:
    """Breaks ties by position, as argmax does."""

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        pmf = np.full(scores.size, 0.5 / scores.size)
        pmf[np.argmax(scores)] += 0.5
        return pmf


class NotOne:
    """Sums to a little less than 1."""

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        return np.full(scores.size, 0.999 / scores.size)


class Backwards:
    """Prefers the worst."""

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        odds = np.exp(-(scores - scores.min()) / max(np.ptp(scores), 1e-300))
        return np.asarray(odds / odds.sum())


class Scribbler:
    """Sorts its argument in place."""

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        scores[:] = 0.0
        return np.full(scores.size, 1.0 / scores.size)


class Forgetful:
    """Gives another pmf every time."""

    def __init__(self) -> None:
        self.calls = 0

    def probabilities(self, scores: FloatArray, training_rows: int) -> FloatArray:
        self.calls += 1
        odds = np.ones(scores.size)
        odds[0] += self.calls % 2
        return np.asarray(odds / odds.sum())


class TooGreedyForItsFloor:
    """Claims a floor that it doesn't keep, and looks at nothing else."""

    floor = 0.1

    def pmf(
        self,
        scores: FloatArray,
        eligible: NDArray[np.bool_] | None = None,
        *,
        training_rows: int = 0,
    ) -> FloatArray:
        return Greedy().pmf(scores, eligible, training_rows=training_rows)


def custom(kind: type) -> Custom:
    return Custom(path=f"{__name__}:{kind.__name__}")


def failures(exploration: Any) -> set[str]:
    return {finding.check for finding in check_exploration(exploration) if not finding.passed}


def test_a_users_own_conforms() -> None:
    assert failures(custom(Proportional)) == set()


def test_a_users_own_that_asks_for_uncertainty_conforms() -> None:
    assert failures(custom(Curious)) == set()
    assert custom(Curious).needs == custom(Curious).wants == {"deviation"}


def test_a_users_own_can_do_without_what_it_wants() -> None:
    content = custom(Content)
    assert failures(content) == set()
    assert not content.needs
    assert content.wants == Conservative(inner=content).wants == {"deviation"}
    told = Estimates(np.zeros(2), np.array([0.1, 0.3]))
    np.testing.assert_allclose(content.pmf(told), [1 / 3, 2 / 3])
    assert content.pmf(told.mean).tolist() == [0.5, 0.5]


def test_relying_on_what_is_only_wanted_is_found() -> None:
    (finding, *_) = check_exploration(custom(Careless))
    assert not finding.passed
    assert finding.counterexample is not None
    assert "AssertionError" in finding.counterexample


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (FirstTie, "shares ties evenly"),
        (FirstTie, "reorders with the actions"),
        (NotOne, "sums to 1 within 1e-9"),
        (Backwards, "never gives a higher score less"),
        (Scribbler, "leaves the scores alone"),
        (Forgetful, "gives the same pmf again"),
    ],
)
def test_defects_are_found(kind: type, found: str) -> None:
    assert found in failures(custom(kind))


def test_a_broken_floor_is_found() -> None:
    assert failures(TooGreedyForItsFloor()) == {"keeps the floor"}


def test_the_floor_of_a_users_own_is_kept_for_it() -> None:
    exploration = Custom(path=f"{__name__}:Proportional", floor=0.15)
    assert exploration.pmf(np.array([0.1, 0.9, 0.5]), training_rows=5).min() >= 0.15
    assert failures(exploration) == set()


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("nowhere:Thing", {}, "No module named"),
        (f"{__name__}:Missing", {}, "has no attribute"),
        ("os:system", {"command": "true"}, "method probabilities"),
        ("subprocess:Popen", {"args": "true"}, "method probabilities"),
        (f"{__name__}:FirstTie", {"share": 1}, "params must be what"),
        (f"{__name__}:Demanding", {}, "needs of .* must be among covariance, deviation, members"),
        (f"{__name__}:Wishing", {}, "wants of .* must be among .*, got crystal ball"),
        ("no-colon", {}, "no entry point of that name is installed"),
    ],
)
def test_bad_paths_say_what_was_expected(path: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Custom(path=path, params=params)


def check_policy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "croupier", "check-policy", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
    )


def test_check_policy_finds_a_class_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Fair:\n"
        "    def probabilities(self, scores, training_rows):\n"
        "        return np.full(len(scores), 1 / len(scores))\n"
    )
    done = check_policy(tmp_path, "mine:Fair", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["conforms"] is True


def test_check_policy_finds_an_entry_point_of_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Fair:\n"
        "    def probabilities(self, scores, training_rows):\n"
        "        return np.full(len(scores), 1 / len(scores))\n"
    )
    installed = tmp_path / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[croupier.explorations]\nfair = mine:Fair\n")
    done = check_policy(tmp_path, "fair", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["conforms"] is True


def test_check_policy_says_how_far_sampled_probabilities_can_be_off(tmp_path: Path) -> None:
    done = check_policy(tmp_path, "thompson", "--params", '{"samples": 4000}', "--json")
    assert done.returncode == 0, done.stderr
    assert "warning: thompson(samples=4000): probabilities can come down to 0" in done.stderr
    sampled = msgspec.json.decode(done.stdout)["sampled"]
    assert sampled["actions"] == 10
    assert 0.02 < sampled["largest"] < 0.04
    exact = check_policy(tmp_path, "squarecb", "--json")
    assert msgspec.json.decode(exact.stdout)["sampled"] is None


def test_check_policy_fails_and_errs_as_it_should(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Sure:\n"
        "    def probabilities(self, scores, training_rows):\n"
        "        return [1.0] + [0.0] * (len(scores) - 1)\n"
    )
    wrong = check_policy(tmp_path, "mine:Sure")
    assert wrong.returncode == 1
    assert "Does not conform." in wrong.stdout
    for arguments in (["mine:Nope"], ["softmax", "--params", '{"temperature": -1}'], ["softest"]):
        done = check_policy(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: path: ")
        assert len(done.stderr.splitlines()) == 1
