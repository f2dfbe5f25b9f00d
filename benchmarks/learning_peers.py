r"""Learners of other packages, for :mod:`benchmarks.learning_quality` to be compared with.

It is run by an interpreter that has the packages; Croupier needn't be there::

    python -m venv peers
    peers/bin/pip install vowpalwabbit==9.11.9 mabwiser==2.7.4 contextualbandits==0.3.30 \
        coba==8.1.0 river==0.26.1 statsmodels==0.15.0

``peers/bin/python benchmarks/learning_peers.py`` reads jobs, one JSON object a line, and answers
each with one line, so that a process imports the packages once. ``--list`` names the learners and
the versions, ``--export FOLDER`` writes the data sets that river and statsmodels bring along.

Every learner is at the defaults of its package, but for what its name says. A learner that can't be
taught row by row is fitted anew on all rows so far after every 10 rows up to 100 and after every 50
from then on (contextualbandits' own examples do so after every 50).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

PACKAGES = ("vowpalwabbit", "mabwiser", "contextualbandits", "coba", "river", "statsmodels")
_NEIGHBOURS = 10


class Learner(Protocol):
    """Chooses an action, and is told what came of it."""

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Index of the chosen action, given the context, shape (d,), and actions, shape (K, e)."""
        ...

    def learn(self, reward: float) -> None:
        """Take in the reward of the last choice."""
        ...


class VowpalWabbit:
    """An explorer of Vowpal Wabbit's, with the product of context and action features (-q xa)."""

    def __init__(self, arguments: str, actions: int, seed: int) -> None:
        import vowpalwabbit  # noqa: PLC0415

        fixed = f"--quiet --cb_explore_adf -q xa --random_seed {seed + 1}"
        self._workspace: Any = vowpalwabbit.Workspace(f"{fixed} {arguments}")
        self._label = vowpalwabbit.LabelType.CONTEXTUAL_BANDIT
        self._rng = np.random.default_rng(seed)
        self._actions = actions

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Choose, see :class:`Learner`."""
        self._lines = [f"shared |x {_vw(shared)}"] + [
            f"|a action={index} {_vw(features)}" for index, features in enumerate(own)
        ]
        with self._examples(self._lines) as examples:
            self._pmf = _proper(self._workspace.predict(examples))
        self._chosen = int(self._rng.choice(self._actions, p=self._pmf))
        return self._chosen

    def learn(self, reward: float) -> None:
        """Learn, see :class:`Learner`."""
        lines = list(self._lines)
        place = 1 + self._chosen
        label = f"{self._chosen}:{-reward:g}:{self._pmf[self._chosen]:.9g}"
        lines[place] = f"{label} {lines[place]}"
        with self._examples(lines) as examples:
            self._workspace.learn(examples)

    @contextlib.contextmanager
    def _examples(self, lines: list[str]) -> Iterator[Any]:
        examples = self._workspace.parse(lines, self._label)
        yield examples
        # Unless told so, the workspace never has their memory back.
        self._workspace.finish_example(examples)


class Mabwiser:
    """A policy of MABWiser's; the context has a constant, since its regressions have none.

    One that looks for neighbours chooses at random until there are ten to look among.
    """

    def __init__(self, make: Callable[[], tuple[Any, Any]], actions: int, seed: int) -> None:
        from mabwiser.mab import MAB  # noqa: PLC0415

        learning, neighbourhood = make()
        self._policy: Any = MAB(list(range(actions)), learning, neighbourhood, seed=seed)
        self._constant = neighbourhood is None
        self._random_rows = 1 if neighbourhood is None else _NEIGHBOURS
        self._rng = np.random.default_rng(seed)
        self._actions = actions
        self._rows = 0
        self._first: list[tuple[int, float, NDArray[np.float64]]] = []

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Choose, see :class:`Learner`."""
        self._context = _flat(shared, own, constant=self._constant)[None, :]
        if self._rows < self._random_rows:
            self._chosen = int(self._rng.integers(self._actions))
        else:
            self._chosen = int(self._policy.predict(self._context))
        return self._chosen

    def learn(self, reward: float) -> None:
        """Learn, see :class:`Learner`."""
        self._rows += 1
        if self._rows > self._random_rows:
            self._policy.partial_fit([self._chosen], [reward], self._context)
            return
        self._first.append((self._chosen, reward, self._context[0]))
        if self._rows == self._random_rows:
            chosen, rewards, contexts = zip(*self._first, strict=True)
            self._policy.fit(list(chosen), list(rewards), np.array(contexts))


class ContextualBandits:
    """A policy of contextualbandits'."""

    def __init__(self, make: Callable[[int, int], Any], actions: int, seed: int) -> None:
        self._policy = make(actions, seed)
        self._by_row = type(self._policy).__name__ in {"LinUCB", "LinTS"}
        self._contexts: list[NDArray[np.float64]] = []
        self._chosen: list[int] = []
        self._rewards: list[float] = []

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Choose, see :class:`Learner`."""
        self._contexts.append(_flat(shared, own))
        self._chosen.append(int(self._policy.predict(self._contexts[-1][None, :])[0]))
        return self._chosen[-1]

    def learn(self, reward: float) -> None:
        """Learn, see :class:`Learner`."""
        self._rewards.append(reward)
        rows = len(self._rewards)
        since = slice(-1, None) if self._by_row else slice(None)
        if self._by_row or is_refitted(rows):
            teach = self._policy.partial_fit if self._by_row else self._policy.fit
            teach(
                np.array(self._contexts[since]),
                np.array(self._chosen[since]),
                np.array(self._rewards[since]),
            )


class Coba:
    """A learner of coba's; actions are one-hot, followed by their own features."""

    def __init__(self, make: Callable[[int], Any], actions: int, seed: int) -> None:
        self._learner = make(seed)
        self._identity = np.eye(actions)

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Choose, see :class:`Learner`."""
        self._context = tuple(shared.tolist())
        actions = [tuple(row) for row in np.hstack([self._identity, own]).tolist()]
        action, self._probability, *more = self._learner.predict(self._context, actions)
        self._more = more[0] if more else {}
        self._action = action
        return actions.index(action)

    def learn(self, reward: float) -> None:
        """Learn, see :class:`Learner`."""
        told = (self._context, self._action, reward, self._probability)
        self._learner.learn(*told, **self._more)


class River:
    """A policy of river's; the context has a constant, since its regressions have none."""

    def __init__(self, make: Callable[[int], Any], actions: int, seed: int) -> None:
        self._policy = make(seed)
        self._arms = list(range(actions))
        self._contextual = type(self._policy).__name__ == "LinUCBDisjoint"

    def choose(self, shared: NDArray[np.float64], own: NDArray[np.float64]) -> int:
        """Choose, see :class:`Learner`."""
        features = _flat(shared, own, constant=True).tolist()
        self._told = (dict(enumerate(features)),) if self._contextual else ()
        self._chosen = int(self._policy.pull(self._arms, *self._told))
        return self._chosen

    def learn(self, reward: float) -> None:
        """Learn, see :class:`Learner`."""
        self._policy.update(self._chosen, *self._told, reward)


def is_refitted(rows: int) -> bool:
    """Whether a learner that learns from all rows at once does so after so many."""
    return rows % (10 if rows <= 100 else 50) == 0


def learners() -> dict[str, Callable[[int, int], Learner]]:
    """What makes every learner from the number of actions and a seed, by package and name."""
    return {
        **{f"vw {name}": functools.partial(VowpalWabbit, flags) for name, flags in _VW.items()},
        **{f"mabwiser {name}": functools.partial(Mabwiser, made) for name, made in _mab().items()},
        **{
            f"contextualbandits {name}": functools.partial(ContextualBandits, made)
            for name, made in _cb().items()
        },
        **{f"coba {name}": functools.partial(Coba, made) for name, made in _coba().items()},
        **{f"river {name}": functools.partial(River, made) for name, made in _river().items()},
    }


_RANGE = "--cb_min_cost -1 --cb_max_cost 0"
_VW = {
    "epsilon 0.05": "--epsilon 0.05",
    "greedy": "--epsilon 0",
    "softmax": "--softmax",
    "softmax, lambda 10": "--softmax --lambda 10",
    "bag 5": "--bag 5",
    "bag 5, greedify": "--bag 5 --greedify",
    "cover 5": "--cover 5",
    "squarecb": "--squarecb",
    "squarecb, gamma_scale 100": "--squarecb --gamma_scale 100",
    "regcb": f"--regcb {_RANGE}",
    "regcb, mellowness 0.01": f"--regcb --mellowness 0.01 {_RANGE}",
    "regcbopt": f"--regcbopt {_RANGE}",
    "regcbopt, mellowness 0.01": f"--regcbopt --mellowness 0.01 {_RANGE}",
    "rnd 3": "--rnd 3 --epsilon 0.025",
}


def _mab() -> dict[str, Callable[[], tuple[Any, Any]]]:
    from mabwiser.mab import LearningPolicy, NeighborhoodPolicy  # noqa: PLC0415

    arms, near = LearningPolicy, NeighborhoodPolicy
    return {
        "LinGreedy": lambda: (arms.LinGreedy(), None),
        "LinUCB": lambda: (arms.LinUCB(), None),
        "LinUCB, alpha 0.1": lambda: (arms.LinUCB(alpha=0.1), None),
        "LinTS": lambda: (arms.LinTS(), None),
        "LinTS, alpha 0.1": lambda: (arms.LinTS(alpha=0.1), None),
        "KNearest": lambda: (arms.EpsilonGreedy(), near.KNearest()),
        "KNearest 5, UCB1 0.1": lambda: (arms.UCB1(alpha=0.1), near.KNearest(k=5)),
        "Clusters": lambda: (arms.UCB1(), near.Clusters()),
        "TreeBandit": lambda: (arms.UCB1(), near.TreeBandit()),
    }


def _cb() -> dict[str, Callable[[int, int], Any]]:
    from contextualbandits import online  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    def fitted(policy: Any, **options: Any) -> Callable[[int, int], Any]:
        # The regression, and the prior, of the package's own example.
        def make(actions: int, seed: int) -> Any:
            base = LogisticRegression(solver="lbfgs", warm_start=True)
            jobs = "njobs_arms" if "Bootstrapped" in policy.__name__ else "njobs"
            return policy(
                base,
                actions,
                beta_prior=((3.0 / actions, 4.0), 2),
                random_state=seed + 1,
                **{jobs: 1},
                **options,
            )

        return make

    return {
        "LinUCB": lambda actions, seed: online.LinUCB(actions, random_state=seed + 1),
        "LinUCB, alpha 0.1": lambda actions, seed: online.LinUCB(
            actions, alpha=0.1, random_state=seed + 1
        ),
        "LinTS": lambda actions, seed: online.LinTS(actions, random_state=seed + 1),
        "LinTS, v_sq 0.1": lambda actions, seed: online.LinTS(
            actions, v_sq=0.1, random_state=seed + 1
        ),
        "LogisticUCB": lambda actions, seed: online.LogisticUCB(
            actions, beta_prior=((3.0 / actions, 4.0), 2), random_state=seed + 1, njobs=1
        ),
        "EpsilonGreedy": fitted(online.EpsilonGreedy),
        "AdaptiveGreedy": fitted(online.AdaptiveGreedy),
        "SoftmaxExplorer": fitted(online.SoftmaxExplorer),
        "BootstrappedTS": fitted(online.BootstrappedTS),
    }


def _coba() -> dict[str, Callable[[int], Any]]:
    import coba.learners as made  # noqa: PLC0415

    return {
        "VowpalEpsilonLearner": lambda seed: made.VowpalEpsilonLearner(seed=seed + 1),
        "VowpalSoftmaxLearner": lambda seed: made.VowpalSoftmaxLearner(seed=seed + 1),
        "VowpalBagLearner": lambda seed: made.VowpalBagLearner(seed=seed + 1),
        "VowpalSquarecbLearner": lambda seed: made.VowpalSquarecbLearner(seed=seed + 1),
        "VowpalEpsilonLearner, 1 a ax": lambda seed: made.VowpalEpsilonLearner(
            features=(1, "a", "ax"), seed=seed + 1
        ),
        "LinUCBLearner": lambda seed: made.LinUCBLearner(seed=seed + 1),
        "LinUCBLearner, alpha 0.1": lambda seed: made.LinUCBLearner(alpha=0.1, seed=seed + 1),
        "LinTSLearner": lambda seed: made.LinTSLearner(seed=seed + 1),
        "LinTSLearner, v 0.1": lambda seed: made.LinTSLearner(v=0.1, seed=seed + 1),
        "CorralLearner": lambda seed: made.CorralLearner(
            [
                made.VowpalEpsilonLearner(features=(1, "a", "ax"), seed=seed + 1),
                made.LinUCBLearner(seed=seed + 1),
            ],
            seed=seed + 1,
        ),
    }


def _river() -> dict[str, Callable[[int], Any]]:
    from river import bandit  # noqa: PLC0415

    return {
        "LinUCBDisjoint": lambda seed: bandit.LinUCBDisjoint(seed=seed),
        "EpsilonGreedy 0.1": lambda seed: bandit.EpsilonGreedy(epsilon=0.1, seed=seed),
    }


def run(learner: Learner, stream: Path) -> list[int]:
    """Reward of every decision, 0 or 1, of a learner that knows nothing yet.

    Parameters
    ----------
    learner
        That decides.
    stream
        A file that :func:`benchmarks.learning_streams.write` wrote.
    """
    with np.load(stream) as arrays:
        shared, own, rewards = arrays["shared"], arrays["own"], arrays["rewards"]
    earned = []
    for context, features, reward in zip(shared, own, rewards, strict=True):
        earned.append(int(reward[learner.choose(context, features)]))
        learner.learn(float(earned[-1]))
    return earned


def main() -> None:
    """Answer jobs until there are none, or do what the command asks for."""
    warnings.simplefilter("ignore")
    logging.disable()
    if sys.argv[1:2] == ["--list"]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        _answer({"learners": list(learners()), "versions": versions})
        return
    if sys.argv[1:2] == ["--export"]:
        _export(Path(sys.argv[2]))
        return
    made = learners()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            learner = made[job["learner"]](job["actions"], job["seed"])
            _answer({"rewards": run(learner, Path(job["stream"]))})
        except Exception as error:  # noqa: BLE001 - whatever a package raises is its own answer
            _answer({"error": f"{type(error).__name__}: {error}"})


def _answer(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _export(folder: Path) -> None:
    """Write raw features, and the reward of every action, of the data sets in the packages."""
    from river import datasets  # noqa: PLC0415
    from statsmodels.datasets import modechoice  # noqa: PLC0415

    for name, source in {
        "image segments": datasets.ImageSegments(),
        "phishing": datasets.Phishing(),
        "shuttle": datasets.Shuttle(),
    }.items():
        _write_classes(folder / f"{name}.npz", list(source))
    rows = [(list(x.values()), [float(good) for good in y.values()]) for x, y in datasets.Yeast()]
    np.savez(
        folder / "yeast.npz",
        shared=np.array([x for x, _ in rows], dtype=float),
        rewards=np.array([y for _, y in rows]),
    )
    trips = modechoice.load_pandas().data.sort_values(["individual", "mode"])
    people = len(trips) // 4
    np.savez(
        folder / "mode choice.npz",
        shared=trips[["hinc", "psize"]].to_numpy(float).reshape(people, 4, 2)[:, 0],
        own=trips[["ttme", "invc", "invt", "gc"]].to_numpy(float).reshape(people, 4, 4),
        rewards=trips["choice"].to_numpy(float).reshape(people, 4),
    )


def _write_classes(path: Path, rows: list[tuple[dict[str, float], Any]]) -> None:
    classes = sorted({str(label) for _, label in rows})
    np.savez(
        path,
        shared=np.array([list(x.values()) for x, _ in rows], dtype=float),
        rewards=np.eye(len(classes))[[classes.index(str(label)) for _, label in rows]],
    )


def _vw(features: NDArray[np.float64]) -> str:
    return " ".join(f"{index}:{value:.6g}" for index, value in enumerate(features.tolist()))


def _proper(pmf: Any) -> NDArray[np.float64]:
    """A pmf in double precision; regcb's may lack what rounding took."""
    values = np.maximum(np.asarray(pmf, dtype=np.float64), 0.0)
    return np.asarray(values / values.sum())


def _flat(
    shared: NDArray[np.float64], own: NDArray[np.float64], *, constant: bool = False
) -> NDArray[np.float64]:
    """All that is known of a decision in one vector, for learners without action features."""
    return np.concatenate([shared, own.ravel(), np.ones(int(constant))])


if __name__ == "__main__":
    main()
