"""Learning online: an oracle that is taught what each commit to the lake has added.

What an oracle learns bit by bit depends on the order. Here the order is the lake's own: first, at
once, what stood in the interactions at a base version, then what every later commit has added, and
within each of these by offset and id. What was learned can't be unlearned, so an interaction counts
with the reward that it had at first; a later revision is for the night. So a learner's history is
two numbers, the base version and the version reached. From these, the configuration and the seed
the same oracle can be made again, whether a process died in between or not.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from croupier import __version__
from croupier.offline.interactions import current_interactions, learning_weights
from croupier.offline.join import FOLDS
from croupier.offline.learner_log import learnable
from croupier.offline.retrain import (
    budget_of,
    config_digest,
    encodable,
    is_judged,
    lessons_of,
    require_lessons,
)
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    load_oracle,
    make_online_oracle,
)
from croupier.policy.training import TrainingConfig

if TYPE_CHECKING:
    from croupier.offline.lake import Lake
    from croupier.offline.retrain import Lesson
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import OnlineOracle, OracleConfig

__all__ = ("OnlineLearner", "relearn", "require_online")


class OnlineLearner:
    """A loop's oracle on its way through the lake.

    It learns the learner's folds alone, as :func:`~croupier.offline.retrain.retrain` does, and the
    same from every interaction. With an oracle of Vowpal Wabbit's it comes to the same weights as
    `retrain` would with the rows in that order, bit for bit.

    After any error but a :class:`~croupier.offline.lake.ForgottenError` of the first
    :meth:`learn`, it may have learned a part of a commit, and is of no use any more.

    Parameters
    ----------
    lake
        With the loop's interactions.
    loop, config
        What to learn, and how.
    judge_share
        Share of the decisions, in [0, 1), that are kept for judging and never learned from.
    seed
        Of everything random in learning.
    base
        Version of the interactions that is learned at once, and first.

    Raises
    ------
    ConfigError
        If the loop's oracle can't learn online.

    Attributes
    ----------
    base
        As given.
    version
        The version that was reached; below `base` before the first :meth:`learn`.
    lessons
        How many interactions were learned from.
    """

    def __init__(
        self,
        lake: Lake,
        loop: str,
        config: LoopConfig,
        *,
        judge_share: float,
        seed: int,
        base: int,
    ) -> None:
        require_online(loop, config)
        self.base = base
        self.version = base - 1
        self.lessons = 0
        self._lake = lake
        self._loop = loop
        self._config = config
        self._judge_share = judge_share
        self._seed = seed
        self._oracle: OnlineOracle = make_online_oracle(config.oracle, random_state=seed)
        # Rows by keep_prob, for the weights of those to come.
        self._kept: Counter[float] = Counter()

    def learn(self, until: int | None = None) -> int:
        """Learn what there is to learn, commit by commit.

        Parameters
        ----------
        until
            Version to stop at; the latest if None.

        Returns
        -------
        int
            How many interactions were learned from.

        Raises
        ------
        ForgottenError
            If rows that it has yet to learn have been deleted.
        GenerationError
            If the oracle can't learn them, such as weights that grow without bound.
        """
        last = self._lake.version("interactions") if until is None else until
        if last <= self.version:
            return 0
        before = self.lessons
        for _, rows in self._fresh(last).group_by("version", maintain_order=True):
            self._learn(rows)
        self.version = last
        return self.lessons - before

    def generation(self, *, number: int, parent: int, created_us: int) -> Generation:
        """Make a generation of what has been learned so far; it stays as it is from then on.

        Parameters
        ----------
        number, parent
            Of the new generation and of the champion it challenges.
        created_us
            Now, in microseconds since the epoch.

        Raises
        ------
        NotEnoughDataError
            If fewer than 20 interactions were learned from.
        """
        require_lessons(self._loop, self.lessons)
        provenance = Provenance(
            parent=parent,
            lake_version=self.version,
            code_version=__version__,
            loop_config=config_digest(self._config),
            seed=self._seed,
            training_rows=self.lessons,
            created_us=created_us,
            budget=budget_of(self._config, self._learned, self._oracle),
            base_version=self.base,
            learned_folds=(round(self._judge_share * FOLDS), FOLDS - 1),
            learned_from_slices=self._config.training.learn_from_slices,
        )
        # What was written is what is served, and goes on not to learn.
        with tempfile.TemporaryDirectory() as folder:
            self._oracle.save(Path(folder))
            oracle = load_oracle(Path(folder))
        return Generation(self._loop, number, self._config.exploration, oracle, provenance)

    def _learned(self) -> pl.DataFrame:
        """Everything that was learned from."""
        return (
            current_interactions(self._lake, self._loop, version=self.version)
            .filter(~is_judged(self._judge_share, self._config.training))
            .sort("offset", "decision_id")
            .collect()
        )

    def _fresh(self, last: int) -> pl.DataFrame:
        """What came after the version that was reached, in the order in which it is learned."""
        first = max(self.version, self.base)
        rows = self._lake.scan_commits("interactions", first, last, self._loop)
        return (
            rows.filter(
                ~is_judged(self._judge_share, self._config.training),
                pl.col("version") > self.version,
            )
            .filter(pl.col("revision").fill_null(0) == 0)
            .sort("version", "offset", "decision_id")
            .collect()
        )

    def _learn(self, joined: pl.DataFrame) -> None:
        rows = learnable(self._loop, self._config, joined)
        if rows.is_empty():
            return
        weights = learning_weights(rows, self._kept)
        lessons = lessons_of(self._config, rows, weights)
        try:
            self._teach(lessons)
        except InvalidInputError:
            # Oracles look at all features before they learn any.
            lessons = encodable(self._loop, self._config, lessons)
            self._teach(lessons)
        self._kept.update(rows["keep_prob"].to_list())
        self.lessons += len(lessons)

    def _teach(self, lessons: list[Lesson]) -> None:
        self._oracle = self._oracle.partial_fit([row for lesson in lessons for row in lesson])


def relearn(
    lake: Lake, loop: str, config: LoopConfig, origin: Provenance, *, judge_share: float
) -> OnlineLearner:
    """The learner as it was when it made a generation.

    Parameters
    ----------
    lake
        As it was filled then, perhaps further by now.
    loop, config, judge_share
        As they were.
    origin
        Of the generation.

    Raises
    ------
    InvalidInputError
        If the generation did not learn online.
    ForgottenError
        If rows that it learned from have been deleted since.
    """
    if origin.base_version is None:
        raise InvalidInputError("generation", "expected one that has learned online")
    learner = OnlineLearner(
        lake,
        loop,
        config,
        judge_share=judge_share,
        seed=origin.seed,
        base=origin.base_version,
    )
    learner.learn(origin.lake_version)
    return learner


def require_online(loop: str, config: LoopConfig) -> None:
    """Refuse a loop whose oracle can't learn online.

    Raises
    ------
    ConfigError
        Naming the field.
    """
    training = config.training
    plain = TrainingConfig(holdout=training.holdout, learn_from_slices=training.learn_from_slices)
    if training != plain:
        raise ConfigError(
            f"loops.{loop}.training",
            "expected neither weights, calibration, a window, a tilt nor another start "
            "to learn online",
        )
    if config.censoring != "none":
        raise ConfigError(
            f"loops.{loop}.censoring", f"expected none to learn online, got {config.censoring}"
        )
    place, oracle = f"loops.{loop}.oracle", config.oracle
    try:
        make_online_oracle(oracle)
    except InvalidInputError as error:
        raise ConfigError(place, error.expected) from error
    inner, fitted = _what_learns(oracle)
    if isinstance(fitted, VowpalWabbitConfig | VowpalWabbitModelConfig) and fitted.passes != 1:
        raise ConfigError(
            f"{place}{inner}.passes", f"expected 1 to learn online, got {fitted.passes}"
        )


def _what_learns(oracle: OracleConfig) -> tuple[str, OracleConfig]:
    """The configuration that has the passes, and where it is within another one."""
    if isinstance(oracle, BootstrapConfig):
        return ".base", oracle.base
    return (".beyond", oracle.beyond) if isinstance(oracle, AutoConfig) else ("", oracle)
