"""The rows that judge: interactions that no generation in question has learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.offline.delays import settling
from croupier.offline.folds import is_judged, unseen_by
from croupier.offline.interactions import current_interactions
from croupier.offline.window import window_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

    from croupier.offline.lake import Lake
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("judged_interactions",)


def judged_interactions(
    lake: Lake,
    loop: str,
    config: LoopConfig,
    generations: Iterable[Generation],
    *,
    judge_share: float,
    judge_window: str | None = None,
) -> pl.DataFrame:
    """The judge's interactions, which none of the generations learned from, in the log's order.

    One that was trained when fewer of them were the judge's may have learned from some.

    Parameters
    ----------
    lake, loop, config
        Whose interactions.
    generations
        That are to be judged.
    judge_share
        Share of the folds that judge, in [0, 1].
    judge_window
        How far back from the latest of the judge's interactions, a duration; None for all.
    """
    settle = settling(lake, loop, config)
    judged = is_judged(judge_share, config.training), *map(unseen_by, generations)
    window = window_of(
        lake.snapshot("interactions", loop).files,
        lambda files: settle(lake.read("interactions", [each.path for each in files])).filter(
            *judged
        ),
        duration=judge_window,
    )
    rows = settle(current_interactions(lake, loop, since=window.since))
    return rows.filter(*judged, window.within).sort("offset", "decision_id").collect()
