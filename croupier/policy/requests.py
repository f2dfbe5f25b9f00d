"""What an application can ask: the requests of all shapes, free of NumPy.

A client in the request path of an application needs these and nothing of what answers them.
"""

from __future__ import annotations

import msgspec

from croupier.policy.events import Action, Features

__all__ = ("DecisionRequest", "RankRequest", "SlateRequest", "Slot", "SlotsRequest")


class DecisionRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an application asks.

    Attributes
    ----------
    actions
        The candidates, at least one, with unique ids.
    context
        Features that all actions share.
    decision_id
        The caller's id, 1 to 256 characters; made up if left out.
    excluded
        Ids of actions that must not be chosen this time.
    baseline
        Id of the action the application would take by itself; the first one unless named.
    deferred
        True if the decision counts only once it is activated.
    audit
        Attributes that are logged for audits and never reach an oracle.
    session
        The `session` of the answer before, to the same user's last request, or an empty text with
        a first one: the caller keeps how far the session has come, and whichever scorer answers
        goes on from there. Left out, the scorer keeps it, for itself alone.
    """

    actions: list[Action]
    context: Features = {}
    decision_id: str | None = None
    excluded: list[str] = []
    baseline: str | None = None
    deferred: bool = False
    audit: Features = {}
    session: str | None = None


class RankRequest(DecisionRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for an order of all actions.

    Attributes
    ----------
    actions, context, decision_id, excluded, baseline, deferred, audit
        As in :class:`~croupier.policy.requests.DecisionRequest`.
    session
        Must be left out.
    depth
        How many positions are drawn and logged, from the first on; those after them follow the
        scores.
    """

    depth: int = 1


class SlateRequest(DecisionRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for several actions at once, whose places are alike.

    Attributes
    ----------
    actions, context, decision_id, excluded, baseline, deferred, audit
        As in :class:`~croupier.policy.requests.DecisionRequest`.
    session
        Must be left out.
    size
        How many actions to take; not more than are eligible, and at most 100.
    """

    size: int


class Slot(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One place to fill.

    Attributes
    ----------
    id
        Unique within the request, 1 to 256 characters; outcomes name it.
    features
        Describe the slot to the oracle, together with its id.
    excluded
        Ids of actions that must not be put here.
    baseline
        Id of the action the application would put here by itself; the first free one unless named.
    """

    id: str
    features: Features = {}
    excluded: list[str] = []
    baseline: str | None = None


class SlotsRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Asks for an action for every slot, none of them twice.

    Attributes
    ----------
    actions
        The candidates of all slots, with unique ids.
    slots
        In the order in which they are filled, 1 to 100. All actions are scored for every slot,
        so that slots times actions may be 10,000 at most.
    context
        Features that all actions and slots share. The key ``slot`` is taken: what an oracle sees is
        the context with the slot under that key.
    decision_id, deferred, audit
        As in :class:`~croupier.policy.requests.DecisionRequest`.
    """

    actions: list[Action]
    slots: list[Slot]
    context: Features = {}
    decision_id: str | None = None
    deferred: bool = False
    audit: Features = {}
