"""Where a loop stands: what a night that was broken off has left, and whether anything has come.

A night trains what nobody has trained yet. The newest generation that learned all at once says of
itself what it was made from: a version of the interactions, the loop's configuration, the seed, the
judge's share and Croupier's version. If a training would start from the same, it would come to the
same oracle, and there is nothing to do, or only the rest of what was begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from croupier import __version__
from croupier.offline.generations import RECURRENT, published_row, record_generation
from croupier.offline.join import joined_until
from croupier.offline.retrain import config_digest

if TYPE_CHECKING:
    from croupier.offline.lake import Lake
    from croupier.offline.registry import Registry
    from croupier.policy.loop import LoopConfig

__all__ = ("LastTrained", "anything_since", "finish_published", "last_trained")


class LastTrained(msgspec.Struct, frozen=True, kw_only=True):
    """The newest generation that was trained as it would be now, but perhaps on fewer interactions.

    Attributes
    ----------
    generation
        Its number.
    lake_version
        Of the interactions that it was trained on.
    undecided
        Whether it is still to be judged, or was found to be better and is still to be promoted.
    """

    generation: int
    lake_version: int
    undecided: bool


def last_trained(
    lake: Lake, loop: str, config: LoopConfig, *, judge_share: float, seed: int
) -> LastTrained | None:
    """The newest generation that learned all at once, if a training would now be done as its was.

    Parameters
    ----------
    lake
        With the generations.
    loop, config
        Whose, and how it is trained now.
    judge_share, seed
        Of a training now.
    """
    at_once = pl.col("lake_version").is_not_null() & pl.col("base_version").is_null()
    # Others come from simulators, and no training would make them.
    nightly = pl.col("oracle").ne_missing(RECURRENT)
    rows = lake.scan("generations", loop).filter(at_once, nightly).sort("generation").collect()
    if rows.is_empty():
        return None
    last = rows.row(-1, named=True)
    wanted = (config_digest(config), seed, judge_share, __version__)
    if tuple(last[n] for n in ("loop_config", "seed", "judge_share", "code_version")) != wanted:
        return None
    return LastTrained(
        generation=last["generation"],
        lake_version=last["lake_version"],
        undecided=last["status"] == "challenger",
    )


def anything_since(lake: Lake, loop: str, config: LoopConfig, version: int) -> bool:
    """Whether a training would see anything that it wouldn't have seen in a version of the lake.

    Interactions that were added or revised since; or, where rewards are corrected for outcomes that
    may still come, a later moment up to which they are known. What was forgotten since is nothing
    to learn from.

    Parameters
    ----------
    lake, loop, config
        Whose interactions, and how they are corrected.
    version
        Of the interactions.
    """
    present = lake.snapshot("interactions", loop)
    added = lake.added_since("interactions", version)
    # A version that isn't there yet is one of another lake, in whose place this one was built.
    if added is None or version > present.version:
        return True
    if not added.isdisjoint(each.path for each in present.files):
        return True
    return config.censoring != "none" and joined_until(lake, loop) != joined_until(
        lake, loop, version
    )


def finish_published(lake: Lake, registry: Registry, loop: str) -> None:
    """Finish in the registry what was broken off, and record what it has and the lake has not.

    Parameters
    ----------
    lake
        To write to; hold its lock.
    registry, loop
        Of which nobody else publishes generations meanwhile.
    """
    registry.finish(loop)
    rows = lake.scan("generations", loop).select("generation", "run_id").collect()
    # The cold start is recorded before anything is trained. Without it, this lake was built in the
    # place of another one, whose versions say nothing of what is in this one: train anew.
    of_another = rows.is_empty()
    recorded = rows.drop_nulls("run_id")["generation"].to_list()
    for number in sorted(set(registry.numbers(loop)).difference(recorded)):
        generation, published = registry.load(loop, number), registry.published(loop, number)
        known = published.params
        record_generation(
            lake,
            published_row(
                generation,
                published.run_id,
                exploration=known["exploration"],
                oracle=known["oracle"],
                judge_share=None if of_another else float(known["judge_share"]),
            ),
        )
