"""Interactions to learn from, made up from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from croupier.policy.events import Action
from croupier.policy.oracle import TrainingRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from croupier.policy.encoding import EncodedDecision, EncodedFeatures


def random_request(
    rng: np.random.Generator, n_actions: int = 4
) -> tuple[dict[str, Any], list[Action]]:
    context = {
        "v": rng.normal(size=3).tolist(),
        "user": {"segment": str(rng.integers(5)), "age": float(rng.normal())},
        "tags": ["t1", "t2"][: rng.integers(3)],
    }
    actions = [
        Action(f"a{k}", {"x": float(rng.normal()), "color": str(rng.integers(3))})
        for k in range(n_actions)
    ]
    return context, actions


def random_rows(
    n: int,
    *,
    seed: int = 0,
    n_actions: int = 4,
    reward: Callable[[dict[str, Any], Action], float] | None = None,
) -> list[TrainingRow]:
    """Interactions of a policy that explores at random; random rewards in [0, 1] unless given."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        context, actions = random_request(rng, n_actions)
        pmf = 0.8 * rng.dirichlet(np.ones(n_actions)) + 0.2 / n_actions
        chosen = int(rng.choice(n_actions, p=pmf))
        noise = float(rng.random())
        rows.append(
            TrainingRow(
                context=context,
                actions=actions,
                chosen=chosen,
                propensity=float(pmf[chosen]),
                reward=noise if reward is None else reward(context, actions[chosen]),
                weight=float(rng.choice([0.5, 1.0, 2.0])),
            )
        )
    return rows


def vw_examples(decision: EncodedDecision, row: TrainingRow | None = None) -> list[Any]:
    """Vowpal Wabbit's form of a request, with the row's cost as label if there is a row."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    shared = vw.Example()
    shared.set_label(vw.CBLabel(shared=True))
    push(shared["c"], decision.context)
    examples = [shared]
    for position, features in enumerate(decision.actions):
        example = vw.Example()
        if row is not None and position == row.chosen:
            label = vw.CBLabel(label=(-row.reward, row.propensity), weight=row.weight)
        else:
            label = vw.CBLabel(weight=1.0 if row is None else row.weight)
        example.set_label(label)
        push(example["a"], features)
        examples.append(example)
    return examples


def push(group: Any, features: EncodedFeatures) -> None:
    group.push_many_features(features.indices, features.values)


def vw_rewards(workspace: Any, decision: EncodedDecision) -> list[float]:
    """Vowpal Wabbit's own estimates, in the order of the actions."""
    costs = dict(workspace.predict_one(vw_examples(decision)))
    return [-costs[position] for position in range(len(decision.actions))]
