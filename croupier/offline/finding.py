"""What was measured of a challenger beside its value: typed results, section by section.

The gate asks for sections by name. What measures one gives a :class:`Section` of it; a section that
nothing has measured says so, and is never filled with anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = (
    "SECTIONS",
    "Bound",
    "Finding",
    "Held",
    "Section",
    "SectionName",
    "all_sections",
    "objections_of",
)

SectionName: TypeAlias = Literal[
    "calibration", "guardrails", "stability", "fairness", "individual_fairness", "stress"
]

Bound: TypeAlias = Literal["at most", "at least"]
Held: TypeAlias = Literal["pass", "fail", "not shown"]

SECTIONS: tuple[SectionName, ...] = get_args(SectionName)
"""All sections, in the order in which they are shown."""

_TITLES: dict[SectionName, str] = {
    "individual_fairness": "individual fairness",
    "stress": "simulator stress",
}
_UNMEASURED: dict[SectionName, str] = {
    "calibration": "nothing has tested the log that judges",
    "guardrails": "no guardrail reward is configured",
    "stability": "there is no champion's pmf to compare with",
    "fairness": "no attribute is configured to make groups of",
    "individual_fairness": "no auditor is configured",
    "stress": "nothing measures it yet",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number.

    Attributes
    ----------
    name
        What was measured.
    value
        The number.
    lower, upper
        Its interval; None where it has none.
    limit
        What it is held to; None if it is only told.
    bound
        On which side of the limit it has to be.
    verdict
        Whether the limit is shown to be kept or broken, where both can be; None where what isn't
        objected to is kept.
    objection
        What speaks against the challenger, in a sentence; None if nothing does.
    """

    name: str
    value: float
    lower: float | None = None
    upper: float | None = None
    limit: float | None = None
    bound: Bound = "at most"
    verdict: Held | None = None
    objection: str | None = None

    @property
    def holds(self) -> Held | None:
        """Whether the limit is kept; None if there is none."""
        if self.limit is None or self.verdict is not None:
            return self.verdict
        return "pass" if self.objection is None else "fail"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What was found under one heading.

    Attributes
    ----------
    name
        The heading.
    measured
        Whether anything was measured; without it there are no findings.
    note
        How it was measured, or why it wasn't.
    findings
        In the order in which they are shown.
    """

    name: SectionName
    measured: bool
    note: str = ""
    findings: tuple[Finding, ...] = ()

    @classmethod
    def unmeasured(cls, name: SectionName, why: str | None = None) -> Section:
        """A section of which nothing is known."""
        return cls(name=name, measured=False, note=_UNMEASURED[name] if why is None else why)

    @property
    def title(self) -> str:
        """The heading as people read it."""
        return _TITLES.get(self.name, self.name)


def all_sections(measured: Iterable[Section]) -> tuple[Section, ...]:
    """Every section once, in order; those that are not given are not measured."""
    given = {each.name: each for each in measured}
    return tuple(given.get(name, Section.unmeasured(name)) for name in SECTIONS)


def objections_of(sections: Iterable[Section], required: Sequence[SectionName]) -> list[str]:
    """What speaks against a challenger by its sections, in sentences.

    Parameters
    ----------
    sections
        All of them, see :func:`all_sections`.
    required
        Those that have to be measured.
    """
    against = []
    for section in sections:
        if section.name in required and not section.measured:
            against.append(f"{section.title} is required and was not measured: {section.note}")
        against += [each.objection for each in section.findings if each.objection is not None]
    return against
