"""Who is compared with whom: decisions with their treatments, and the panel that judges them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl

from croupier.offline.interactions import keep_weights
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.events import Features
from croupier.policy.fairness.auditors import JudgedPairs, Panel
from croupier.policy.fairness.config import (
    AlikeIfSame,
    IndividualFairness,
    LearnedDistance,
    Person,
    WeightedDistance,
)
from croupier.policy.fairness.features import FeatureTable
from croupier.policy.fairness.learned import DistanceLearner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from croupier.offline.lake import Lake
    from croupier.policy.fairness.auditors import Auditor, FloatArray

__all__ = (
    "COLUMNS",
    "REQUEST",
    "Individuals",
    "JudgedTable",
    "LearnedAuditor",
    "PanelOf",
    "comparable",
    "judged_table",
    "panel_of",
    "sampled_decisions",
)

COLUMNS = (
    "decision_id",
    "ts",
    "generation",
    "context",
    "audit",
    "action_ids",
    "excluded",
    "pmf",
    "keep_prob",
    "slot",
)
"""Of the decisions or the interactions table, what an audit of pairs reads."""

REQUEST = (*COLUMNS, "actions", "chosen", "baseline", "slate_size")
"""The same, and what another policy is asked."""

_features = msgspec.json.Decoder(Features)


@dataclass(frozen=True, slots=True)
class Individuals:
    """Decisions as an audit of pairs sees them.

    Attributes
    ----------
    decisions
        Their rows, with :data:`COLUMNS`.
    table
        Features of which the auditors' distances are made.
    actions
        Ids of the K actions whose probabilities are the treatment.
    treatments
        Probabilities, shape (n, K); 0 for an action that a decision doesn't offer.
    weights
        How many decisions each stands for, shape (n,).
    left_out
        Rows that can't be compared: without a pmf, of a slot, or that don't offer the action.
    """

    decisions: pl.DataFrame
    table: FeatureTable
    actions: tuple[str, ...]
    treatments: FloatArray
    weights: FloatArray
    left_out: int

    def __len__(self) -> int:
        return len(self.decisions)

    @classmethod
    def of(cls, decisions: pl.DataFrame, config: IndividualFairness) -> Individuals:
        """Out of rows of the decisions or the interactions table.

        An action that was excluded was not the policy's to take, so that a decision that excludes
        the named action is left out, as is one that doesn't offer it.

        Parameters
        ----------
        decisions
            With at least :data:`COLUMNS`.
        config
            Of the loop.

        Raises
        ------
        NotEnoughDataError
            If fewer than two decisions remain.
        InvalidInputError
            If a feature of the auditors' is in none of them.
        """
        rows = comparable(decisions.select(COLUMNS), config)
        if len(rows) < 2:
            offering = "" if config.action is None else f" that offer {config.action!r}"
            raise NotEnoughDataError(
                f"pairs need at least two decisions{offering}, got {len(rows)}"
            )
        actions, treatments = _treatments(rows, config.action)
        return cls(
            decisions=rows,
            table=_table(rows, config),
            actions=actions,
            treatments=treatments,
            weights=keep_weights(rows),
            left_out=len(decisions) - len(rows),
        )

    def rows(self, chosen: NDArray[np.int64]) -> Individuals:
        """Some of them, by their rows."""
        return Individuals(
            decisions=self.decisions[chosen],
            table=self.table.rows(chosen),
            actions=self.actions,
            treatments=self.treatments[chosen],
            weights=self.weights[chosen],
            left_out=self.left_out,
        )

    def treated(self, treatments: FloatArray) -> Individuals:
        """The same as another policy treats them; probabilities of shape (n, K)."""
        return Individuals(
            decisions=self.decisions,
            table=self.table,
            actions=self.actions,
            treatments=treatments,
            weights=self.weights,
            left_out=self.left_out,
        )


@dataclass(frozen=True, slots=True)
class JudgedTable:
    """All pairs of a loop that people have judged.

    Attributes
    ----------
    judgements
        Columns `decision_id`, `other_decision_id`, `auditor`, `distance`, `ts`: of every auditor
        and pair the latest.
    decisions
        The decisions of these pairs, with :data:`REQUEST`. A judgement of a decision that the lake
        doesn't have, or not any more, is left out.
    """

    judgements: pl.DataFrame
    decisions: pl.DataFrame


@dataclass(frozen=True, slots=True)
class LearnedAuditor:
    """What a learned distance has come to.

    Attributes
    ----------
    judgements
        How many pairs it was learned from.
    learner
        Fitted; None if there were too few judgements, and it abstains.
    features
        Paths, in the order of the learner's weights.
    held_out_error
        Mean absolute error of distances that weren't learned from; None if there are too few.
    """

    judgements: int
    learner: DistanceLearner | None
    features: tuple[str, ...]
    held_out_error: float | None

    @property
    def weights(self) -> dict[str, float]:
        """By path; empty if nothing was learned."""
        if self.learner is None:
            return {}
        return dict(zip(self.features, self.learner.weights_.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class PanelOf:
    """A configured panel over some individuals.

    Attributes
    ----------
    panel
        That judges pairs of rows.
    names
        Of its auditors, in order; persons that a configuration means by one name are several.
    learned
        What learned distances have come to, by name.
    everywhere
        Places of the auditors that judge all pairs; the others are people.
    """

    panel: Panel
    names: tuple[str, ...]
    learned: Mapping[str, LearnedAuditor]
    everywhere: tuple[int, ...]


def comparable(decisions: pl.DataFrame, config: IndividualFairness) -> pl.DataFrame:
    """The rows that can be compared: not of a slot, with a pmf, and offering the named action."""
    fit = pl.col("pmf").is_not_null() & pl.col("slot").is_null()
    if config.action is not None:
        offered = pl.col("action_ids").list.contains(config.action)
        barred = pl.col("excluded").list.contains(config.action).fill_null(value=False)
        fit = fit & offered & ~barred
    return decisions.filter(fit)


def judged_table(lake: Lake, loop: str) -> JudgedTable:
    """What people have judged in a loop, out of the lake."""
    found = (
        lake.scan("audits", loop)
        .filter(pl.col("kind") == "judgement")
        .select("decision_id", "other_decision_id", "auditor", "distance", "ts", "offset")
        .collect()
    )
    ids = pl.concat([found["decision_id"], found["other_decision_id"]]).unique()
    decisions = (
        lake.scan("decisions", loop)
        .select(REQUEST)
        .filter(pl.col("decision_id").is_in(ids.implode()), pl.col("slot").is_null())
        .unique("decision_id", keep="first", maintain_order=True)
        .collect()
    )
    there = decisions["decision_id"].implode()
    pair = pl.concat_list("decision_id", "other_decision_id").list.sort()
    latest = (
        found.filter(pl.col("decision_id").is_in(there), pl.col("other_decision_id").is_in(there))
        .sort("ts", "offset")
        .group_by(pair.alias("pair"), "auditor", maintain_order=True)
        .last()
        .drop("pair", "offset")
    )
    return JudgedTable(judgements=latest, decisions=decisions)


def panel_of(
    config: IndividualFairness, individuals: Individuals, judged: JudgedTable, *, seed: int = 0
) -> PanelOf:
    """Make the panel that a loop configures, over some individuals.

    Parameters
    ----------
    config
        Of the loop.
    individuals
        Whose pairs are to be judged.
    judged
        What people have judged.
    seed
        Of the folds by which a learned distance's error is told.

    Raises
    ------
    NotEnoughDataError
        If nobody can judge: all auditors are people who have judged nothing, or learn from them.
    """
    auditors: list[Auditor] = []
    names: list[str] = []
    learned: dict[str, LearnedAuditor] = {}
    everywhere: list[int] = []
    for name, auditor in config.auditors.items():
        match auditor:
            case Person():
                for person, pairs in _people(auditor.name, individuals, judged).items():
                    auditors.append(pairs)
                    names.append(name if auditor.name is not None else f"{name}: {person}")
                continue
            case WeightedDistance():
                metric: Auditor = individuals.table.metric(auditor.weights)
            case AlikeIfSame():
                metric = individuals.table.metric(_huge(auditor, individuals.table))
            case LearnedDistance():
                found = _learned(auditor, judged, np.random.default_rng(seed))
                learned[name] = found
                if found.learner is None:
                    continue
                metric = individuals.table.metric(found.weights)
        everywhere.append(len(auditors))
        auditors.append(metric)
        names.append(name)
    if not auditors:
        raise NotEnoughDataError("no auditor can judge: there are too few judgements of people")
    return PanelOf(
        panel=Panel(auditors, config.gamma),
        names=tuple(names),
        learned=learned,
        everywhere=tuple(everywhere),
    )


def sampled_decisions(
    lake: Lake, loop: str, generation: int | None, *, size: int, seed: int = 0
) -> pl.DataFrame:
    """Some decisions of a generation, or of all, drawn by a hash of their ids.

    Parameters
    ----------
    lake, loop
        Whose decisions.
    generation
        That made them; all if None.
    size
        How many at most.
    seed
        Another one draws others.

    Returns
    -------
    DataFrame
        :data:`COLUMNS`, by decision_id.
    """
    rows = lake.scan("decisions", loop).filter(pl.col("slot").is_null())
    if generation is not None:
        rows = rows.filter(pl.col("generation") == generation)
    ids = rows.select("decision_id").unique().collect()["decision_id"]
    if len(ids) > size:
        ids = ids.sort().sample(size, seed=seed)
    found = rows.filter(pl.col("decision_id").is_in(ids.implode())).select(COLUMNS).collect()
    return found.unique("decision_id", keep="first", maintain_order=True).sort("decision_id")


def _table(rows: pl.DataFrame, config: IndividualFairness) -> FeatureTable:
    contexts = [_features.decode(each) for each in rows["context"]]
    audits = [_features.decode(each or "{}") for each in rows["audit"]]
    return FeatureTable.of(_paths(config), contexts, audits)


def _paths(config: IndividualFairness) -> list[str]:
    paths: list[str] = []
    for auditor in config.auditors.values():
        match auditor:
            case WeightedDistance():
                paths += auditor.weights
            case LearnedDistance() | AlikeIfSame():
                paths += auditor.features
            case Person():
                pass
    return paths


def _treatments(rows: pl.DataFrame, action: str | None) -> tuple[tuple[str, ...], FloatArray]:
    flat = rows.select(pl.int_range(pl.len()).alias("row"), "action_ids", "pmf").explode(
        "action_ids", "pmf"
    )
    if action is not None:
        flat = flat.filter(pl.col("action_ids") == action)
    ids = flat["action_ids"].unique().sort()
    place = flat["action_ids"].cast(pl.Enum(ids)).to_physical().to_numpy()
    treatments = np.zeros((len(rows), len(ids)))
    treatments[flat["row"].to_numpy(), place] = flat["pmf"].to_numpy()
    return tuple(ids), treatments


def _people(
    name: str | None, individuals: Individuals, judged: JudgedTable
) -> dict[str, JudgedPairs]:
    """By auditor, the judgements of pairs that are both among the individuals."""
    ids = individuals.decisions.select("decision_id").with_row_index("row")
    one = judged.judgements.join(ids, on="decision_id", how="inner")
    both = one.join(
        ids.rename({"decision_id": "other_decision_id", "row": "other"}),
        on="other_decision_id",
        how="inner",
    )
    found = {}
    for (auditor,), rows in sorted(both.group_by("auditor"), key=lambda each: str(each[0])):
        if name is None or auditor == name:
            found[str(auditor)] = JudgedPairs(
                len(individuals), rows["row"].to_numpy(), rows["other"].to_numpy(), rows["distance"]
            )
    return found


def _huge(auditor: AlikeIfSame, table: FeatureTable) -> dict[str, float]:
    """Weights under which the least difference in a feature makes a distance of 1."""
    found = {}
    for path, block in zip(table.paths, table.blocks, strict=True):
        if path in auditor.features:
            # The closest two values that differ, in any of the columns.
            steps = [np.diff(np.unique(column)) for column in block.T]
            least = min((float(each.min()) for each in steps if len(each)), default=1.0)
            found[path] = 1.0 / least
    return found


def _learned(
    auditor: LearnedDistance,
    judged: JudgedTable,
    rng: np.random.Generator,
) -> LearnedAuditor:
    judgements = judged.judgements
    if auditor.people:
        judgements = judgements.filter(pl.col("auditor").is_in(auditor.people))
    if len(judgements) < auditor.least:
        return LearnedAuditor(len(judgements), None, auditor.features, None)
    decisions = judged.decisions
    contexts = [_features.decode(each) for each in decisions["context"]]
    audits = [_features.decode(each or "{}") for each in decisions["audit"]]
    table = FeatureTable.of(auditor.features, contexts, audits)
    row = {name: place for place, name in enumerate(decisions["decision_id"])}
    first, second = (
        np.array([row[each] for each in judgements[column]], dtype=np.int64)
        for column in ("decision_id", "other_decision_id")
    )
    squares = table.squares(first, second)
    scales = list(table.scales().values())
    distances = judgements["distance"].to_numpy()
    learner = DistanceLearner().fit(squares, distances, scales)
    try:
        error = learner.held_out_error(squares, distances, scales, rng)
    except NotEnoughDataError:
        error = None
    return LearnedAuditor(len(judgements), learner, table.paths, error)
