"""The audit of groups: what each of them got of every generation that served, and what it earned.

How often a group gets an action is read from the logged pmfs, not from the draws: it has no noise
but that of who asked. All tests of a generation, of rewards and exposures and of all attributes,
are one family (Holm): in the audit of a generation that treats groups alike, nothing is called
different with the probability 1 - alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from croupier.offline.fairness.disparities import (
    Contrast,
    Gap,
    Interval,
    contrast,
    interval_of,
    largest_gaps,
)
from croupier.offline.fairness.groups import label, require_few, shown_groups
from croupier.offline.fairness.tallies import COLUMNS, tally_groups, together
from croupier.offline.interactions import current_frames
from croupier.offline.multiplicity import bonferroni, holm_p_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date

    from croupier.offline.fairness.groups import Cell
    from croupier.offline.fairness.tallies import Tally
    from croupier.offline.lake import Lake
    from croupier.offline.realised import Moments
    from croupier.policy.fairness.groups import FairnessConfig
    from croupier.policy.loop import LoopConfig

__all__ = (
    "AttributeAudit",
    "Disparity",
    "Exposure",
    "GenerationAudit",
    "GroupAudit",
    "GroupFigures",
    "audit_groups",
    "audit_of",
)

Measure: TypeAlias = Literal["reward", "exposure"]

_HELD = 200_000


class GroupFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A group that is shown.

    Attributes
    ----------
    group
        What it is called.
    decisions
        Logged decisions of it.
    reward
        Mean realised reward; the intervals of an attribute's groups hold at once.
    """

    group: str
    decisions: int
    reward: Interval


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """How often a group gets an action.

    Attributes
    ----------
    group, action
        Which.
    exposure
        Mean probability of the action, 0 where it isn't among a decision's actions. The interval is
        for the requests that might have come instead; of those that came it is exact. All of an
        attribute hold at once.
    chosen
        Share of the decisions that chose it, in [0, 1].
    propensity
        Its mean propensity where it was chosen; None if it never was.
    """

    group: str
    action: str
    exposure: Interval
    chosen: float
    propensity: float | None


class GroupContrast(msgspec.Struct, frozen=True, kw_only=True):
    """A group against all others that are shown.

    Attributes
    ----------
    group
        Which.
    against
        The difference to the rest, with the test; its interval is one by itself.
    corrected_p_value
        To be held against alpha, of all tests of the generation together.
    """

    group: str
    against: Contrast
    corrected_p_value: float


class Disparity(msgspec.Struct, frozen=True, kw_only=True):
    """How far an attribute's groups are apart in something.

    Attributes
    ----------
    measure, action
        Realised reward, or the exposure of an action.
    gap
        Between the highest and the lowest group.
    contrasts
        Every group against the rest; of two groups only one, as the other says the same.
    """

    measure: Measure
    action: str | None
    gap: Gap
    contrasts: tuple[GroupContrast, ...]


class AttributeAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of an attribute, in one generation.

    Attributes
    ----------
    attribute
        What groups were made of.
    groups
        Those that are shown, large ones first.
    hidden
        Groups that are too small to be shown, or that would give those away.
    exposures
        Of the most probable actions.
    disparities
        Of the reward and of these actions; none where fewer than two groups are shown.
    """

    attribute: str
    groups: tuple[GroupFigures, ...]
    hidden: tuple[str, ...]
    exposures: tuple[Exposure, ...]
    disparities: tuple[Disparity, ...]


class GenerationAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation did to groups.

    Attributes
    ----------
    generation
        Its number.
    attributes
        As configured.
    tests
        How many there were, for which p-values are corrected.
    found
        Differences whose corrected p-value is at most alpha, in sentences.
    """

    generation: int
    attributes: tuple[AttributeAudit, ...]
    tests: int
    found: tuple[str, ...]


class GroupAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What every generation that served did to groups.

    Attributes
    ----------
    loop
        Whose.
    alpha
        Chance of calling anything different in a generation that treats groups alike.
    min_cell
        Fewest decisions of a group that is shown.
    generations
        In ascending order.
    """

    loop: str
    alpha: float
    min_cell: int
    generations: tuple[GenerationAudit, ...]


def audit_groups(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    *,
    generations: Collection[int] | None = None,
    since: date | None = None,
) -> GroupAudit:
    """Audit the groups of a loop's interactions, generation by generation.

    Parameters
    ----------
    lake, loop
        Whose interactions.
    config
        Of the loop: the range of its reward, and its :attr:`fairness`.
    generations
        That are audited; all if None.
    since
        The first day that is read; all if None.

    Raises
    ------
    InvalidInputError
        If an attribute is not a category.
    """
    files = [
        each
        for each in lake.snapshot("interactions", loop).files
        if since is None or each.date >= since
    ]
    frames = current_frames(lake, files, held=_HELD, columns=COLUMNS) if files else iter(())
    wanted = (
        each if generations is None else each.filter(each["generation"].is_in(list(generations)))
        for each in frames
    )
    return audit_of(loop, config, tally_groups(wanted, config.fairness.attributes))


def audit_of(
    loop: str, config: LoopConfig, tallies: Mapping[str, Mapping[int, Mapping[Cell, Tally]]]
) -> GroupAudit:
    """The audit that some sums make.

    Parameters
    ----------
    loop, config
        As in :func:`audit_groups`.
    tallies
        By attribute, generation and group.

    Raises
    ------
    InvalidInputError
        If an attribute has more than 200 groups.
    """
    fairness = config.fairness
    for attribute, by_generation in tallies.items():
        require_few(attribute, list({cell for each in by_generation.values() for cell in each}))
    numbers = sorted({number for each in tallies.values() for number in each})
    return GroupAudit(
        loop=loop,
        alpha=fairness.alpha,
        min_cell=fairness.min_cell,
        generations=tuple(
            _of_generation(
                number, config, {name: each.get(number, {}) for name, each in tallies.items()}
            )
            for number in numbers
        ),
    )


def _of_generation(
    number: int, config: LoopConfig, tallies: Mapping[str, Mapping[Cell, Tally]]
) -> GenerationAudit:
    fairness = config.fairness
    whole = _together(tallies)
    actions = [] if whole is None else _most_probable(whole, fairness.max_actions)
    parts = {
        name: _Groups.of(name, cells, actions, config) for name, cells in tallies.items() if cells
    }
    tested = {
        (name, measure, action, group): each
        for name, part in parts.items()
        for (measure, action, group), each in part.contrasts().items()
    }
    corrected = dict(
        zip(tested, holm_p_values(each.p_value for each in tested.values()).tolist(), strict=True)
    )
    audits = []
    for name, part in parts.items():
        own = {key[1:]: (tested[key], corrected[key]) for key in tested if key[0] == name}
        audits.append(part.audit(own))
    found = [_sentence(key, tested[key], p) for key, p in corrected.items() if p <= fairness.alpha]
    return GenerationAudit(
        generation=number, attributes=tuple(audits), tests=len(tested), found=tuple(found)
    )


_Tested: TypeAlias = "tuple[Measure, str | None, str]"


@dataclass(frozen=True, slots=True)
class _Groups:
    """The groups of an attribute that are shown, in one generation."""

    attribute: str
    tallies: dict[str, Tally]
    hidden: tuple[str, ...]
    actions: list[str]
    config: LoopConfig

    @classmethod
    def of(
        cls, attribute: str, cells: Mapping[Cell, Tally], actions: list[str], config: LoopConfig
    ) -> _Groups:
        fairness: FairnessConfig = config.fairness
        counts = {cell: tally.rows for cell, tally in cells.items()}
        shown = shown_groups(counts, least=fairness.min_cell, most=fairness.max_groups)
        tallies = {
            name: together(cells[cell] for cell in members)
            for name, members in shown.groups.items()
        }
        return cls(attribute, tallies, tuple(map(label, shown.hidden)), actions, config)

    def contrasts(self) -> dict[_Tested, Contrast]:
        """Every group against the rest, in everything that is measured."""
        names = list(self.tallies)
        found: dict[_Tested, Contrast] = {}
        if len(names) < 2:
            return found
        for measure, action in self._measures():
            moments = {name: self._moments(name, action) for name in names}
            # Of two, always the same one, however many decisions each of them has.
            for name in [min(names)] if len(names) == 2 else names:
                rest = _sum([each for other, each in moments.items() if other != name])
                found[measure, action, name] = contrast(
                    moments[name], rest, self._ends(action), 1.0 - self.config.fairness.alpha
                )
        return found

    def audit(self, tested: Mapping[_Tested, tuple[Contrast, float]]) -> AttributeAudit:
        """What is told of the groups, with the tests."""
        confidence = 1.0 - self.config.fairness.alpha
        of_reward = bonferroni(confidence, len(self.tallies))
        of_exposure = bonferroni(confidence, len(self.tallies) * len(self.actions))
        disparities = []
        for (measure, action), gap in self._gaps().items():
            contrasts = tuple(
                GroupContrast(group=name, against=each, corrected_p_value=p)
                for (of, what, name), (each, p) in tested.items()
                if (of, what) == (measure, action)
            )
            disparities.append(
                Disparity(measure=measure, action=action, gap=gap, contrasts=contrasts)
            )
        return AttributeAudit(
            attribute=self.attribute,
            groups=tuple(
                GroupFigures(
                    group=name,
                    decisions=tally.rows,
                    reward=interval_of(tally.reward_moments(), self._ends(None), of_reward),
                )
                for name, tally in self.tallies.items()
            ),
            hidden=self.hidden,
            exposures=tuple(
                Exposure(
                    group=name,
                    action=action,
                    exposure=interval_of(
                        tally.exposure_moments(action), self._ends(action), of_exposure
                    ),
                    chosen=tally.share(action),
                    propensity=tally.propensity(action),
                )
                for action in self.actions
                for name, tally in self.tallies.items()
            ),
            disparities=tuple(disparities),
        )

    def _gaps(self) -> dict[tuple[Measure, str | None], Gap]:
        """Of everything that is measured; none of fewer than two groups."""
        names = list(self.tallies)
        if len(names) < 2:
            return {}
        measures = self._measures()
        means = {
            f"{measure} {action}": [self._moments(name, action).mean for name in names]
            for measure, action in measures
        }
        gaps = largest_gaps(names, means, [each.weight for each in self.tallies.values()])
        return dict(zip(measures, gaps.values(), strict=True))

    def _measures(self) -> list[tuple[Measure, str | None]]:
        return [("reward", None), *(("exposure", each) for each in self.actions)]

    def _moments(self, name: str, action: str | None) -> Moments:
        tally = self.tallies[name]
        return tally.reward_moments() if action is None else tally.exposure_moments(action)

    def _ends(self, action: str | None) -> tuple[float, float]:
        """Smallest and largest possible number; rewards that are summed may be outside theirs."""
        if action is not None:
            return (0.0, 1.0)
        means = [each.reward_moments().mean for each in self.tallies.values()]
        low, high = self.config.reward_min, self.config.reward_max
        return (min(low, *means), max(high, *means))


def _together(tallies: Mapping[str, Mapping[Cell, Tally]]) -> Tally | None:
    """All decisions, which any attribute divides."""
    cells = next((each for each in tallies.values() if each), None)
    return None if cells is None else together(cells.values())


def _most_probable(whole: Tally, most: int) -> list[str]:
    """Actions by falling exposure."""
    by_exposure = sorted(whole.exposure, key=lambda action: (-whole.exposure[action][0], action))
    return by_exposure[:most]


def _sum(moments: list[Moments]) -> Moments:
    first, *others = moments
    for each in others:
        first = first + each
    return first


def _sentence(key: tuple[str, Measure, str | None, str], found: Contrast, p_value: float) -> str:
    attribute, measure, action, group = key
    what = "reward" if measure == "reward" else f"exposure of {action}"
    difference = found.difference
    return (
        f"{attribute} {group}: {what} is {difference.value:+.4f} against the rest "
        f"[{difference.lower:+.4f}, {difference.upper:+.4f}], corrected p-value {p_value:.2g}"
    )
