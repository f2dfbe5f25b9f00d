"""What the terms of this application mean, for people who meet them on a page."""

from __future__ import annotations

from typing import Final

__all__ = ("TERMS", "meaning")

TERMS: Final[dict[str, str]] = {
    "loop": "One decision problem, with its own configuration, log and generations.",
    "decision": "A context, the actions that could be chosen, the probability of each, and the one "
    "that was drawn.",
    "outcome": "A reward for a decision. It may come minutes or days later.",
    "interaction": "A decision joined with its reward.",
    "action": "One of the things that a decision chooses from.",
    "pmf": "The probability of every action that could be chosen. They sum to 1.",
    "propensity": "The probability with which the chosen action was drawn.",
    "oracle": "The model that estimates the reward of an action in a context.",
    "score": "What the oracle expects an action to earn in a context.",
    "exploration": "How probabilities are made of the oracle's scores.",
    "exploration cost": "What the oracle expects its best action to earn, less what it expects of "
    "the probabilities that were played.",
    "generation": "An oracle and an exploration with a number. It never changes.",
    "champion": "The generation that decides.",
    "challenger": "A new generation, which is judged before it may decide.",
    "baseline": "What the application would have chosen itself.",
    "attribution window": "How long an outcome is waited for.",
    "defaulted": "Decisions without an outcome in their window: they get the default reward.",
    "late": "Outcomes that came after their decision's window. They still count.",
    "orphan": "An outcome whose decision is not in the lake.",
    "repeated": "Further outcomes of a decision that has one.",
    "join completeness": "Of decisions whose window has closed, the share that has a reward, "
    "observed or default.",
    "effective sample size": "As many rows of equal weight would tell as much. Far below the "
    "number of rows, the log says little about a policy.",
    "importance weight": "How much more likely an action is under a policy than it was in the log.",
    "support": "Whether the log has seen the actions that a policy takes.",
    "total variation": "The share of decisions that must come out otherwise.",
    "entropy": "How evenly probabilities are spread, in nats: 0 if one action has all.",
    "calibration": "Whether what the oracle expects is what comes, on average.",
    "interval": "A range that holds the true value in 95 of 100 such logs.",
    "IPS": "Inverse propensity scoring: rewards weighted by how much likelier a policy is to "
    "choose what was chosen.",
    "SNIPS": "IPS divided by the sum of its weights: less noisy, hardly biased.",
    "DR": "Doubly robust: the oracle's estimate, corrected by weighted rewards.",
    "oscillation": "Generations that go up and down in turn, because each learns from the log of "
    "the one before.",
    "null band": "What noise alone would show, nine times in ten: a value within it says nothing.",
    "gap": "What a generation earns in a session by simulators of the users, less what it really "
    "earned in the same sessions.",
    "disparity": "How differently groups are treated, or how much less one earns.",
    "violation": "A pair of decisions that an auditor takes to be alike, treated too differently.",
    "slack": "α: by how much treatment may differ beyond an auditor's distance.",
    "share of auditors": "γ: which share of the panel has to object for a pair to violate.",
    "drift": "A change of who asks, or of what is earned, between generations.",
}
"""By term, in the singular."""


def meaning(*terms: str) -> str:
    """Definitions of some terms, for a help text."""
    return "  \n".join(f"**{term.capitalize()}**: {TERMS[term]}" for term in terms)
