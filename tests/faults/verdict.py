"""What is true at the end: of the lake, the topics, and a lake that one process makes of them."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from kafka import KafkaConsumer, TopicPartition
from polars.testing import assert_frame_equal

from croupier.eventlog.kafka.connection import client_settings, open_client
from croupier.eventlog.opening import open_log
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.sink import sink
from tests.faults.deployment import LOOP, PARTITIONS
from tests.faults.load import reward_of

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from croupier.cli.config import CroupierConfig
    from croupier.offline.lake import TableName
    from tests.faults.load import Told

_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Counts:
    """Of decisions, or of outcomes.

    Attributes
    ----------
    sent, acknowledged
        By the load.
    messages, in_topics
        In the topics: all of them, and different ones.
    rows, in_lake
        In the lake likewise.
    lost
        Acknowledged, and not in the lake.
    unacknowledged
        In the lake, sent, and never acknowledged; these may be there.
    unknown
        In the lake and never sent.
    """

    sent: int
    acknowledged: int
    messages: int
    in_topics: int
    rows: int
    in_lake: int
    lost: int
    unacknowledged: int
    unknown: int

    def complaints(self, name: str) -> list[str]:
        """What is not as it has to be."""
        checks = {
            f"{self.lost} acknowledged {name} are not in the lake": self.lost == 0,
            f"{self.unknown} {name} in the lake were never sent": self.unknown == 0,
            f"{self.rows - self.in_lake} {name} are in the lake twice": self.rows == self.in_lake,
            f"{self.in_topics} {name} in the topics, {self.in_lake} in the lake": (
                self.in_topics == self.in_lake
            ),
            f"{name}: acknowledged and unacknowledged ones are not all there is": (
                self.acknowledged + self.unacknowledged == self.in_lake
            ),
        }
        return [complaint for complaint, holds in checks.items() if not holds]


@dataclass(frozen=True)
class Verdict:
    """All that was counted.

    Attributes
    ----------
    decisions, outcomes
        See :class:`Counts`.
    interactions, reference
        Rows that the join made of the lake, and of the lake that one process made of the topics.
    different
        Tables that are not the same in both lakes, to the last column.
    wrong
        Interactions whose reward is not the one that was sent.
    """

    decisions: Counts
    outcomes: Counts
    interactions: int
    reference: int
    different: list[str]
    wrong: int

    def complaints(self) -> list[str]:
        """What is not as it has to be; empty if everything is."""
        found = [
            *self.decisions.complaints("decisions"),
            *self.outcomes.complaints("outcomes"),
            *(f"{each} differ from the reference run's" for each in self.different),
        ]
        if self.wrong:
            found.append(f"{self.wrong} interactions have another reward than was sent")
        if self.interactions != self.decisions.in_lake:
            found.append(f"{self.interactions} interactions of {self.decisions.in_lake} decisions")
        return found


def judge(config: CroupierConfig, lake: Lake, told: Told, folder: Path) -> Verdict:
    """Compare what was acknowledged with what there is.

    Parameters
    ----------
    config
        Of the sinks.
    lake
        That the sinks have filled; nobody writes to it any more.
    told
        What the load was told.
    folder
        For the reference run, empty.
    """
    as_of_us = time.time_ns() // 1000 + 2 * _HOUR_US
    reference = Lake(folder)
    with open_log(config.log, log_dir=folder / "log", loops=[LOOP]) as log, reference.lock():
        sink(log, reference)
    for each in (lake, reference):
        with each.lock():
            join(each, LOOP, config.loops[LOOP], as_of_us)
    interactions = lake.scan("interactions", LOOP).collect()
    return Verdict(
        decisions=_counts(
            told.decisions_sent,
            told.decisions,
            _messages(config, "decisions"),
            lake.scan("decisions", LOOP).collect()["decision_id"].to_list(),
        ),
        outcomes=_counts(
            {f"o-{each}" for each in told.outcomes_sent},
            {f"o-{each}" for each in told.outcomes},
            _messages(config, "outcomes"),
            lake.scan("outcomes", LOOP).collect()["outcome_id"].to_list(),
        ),
        interactions=len(interactions),
        reference=reference.scan("interactions", LOOP).collect().height,
        different=[
            name
            for name in ("decisions", "outcomes", "interactions")
            if not _same(lake, reference, name)
        ],
        wrong=_wrong(interactions, told),
    )


def _counts(sent: set[str], acknowledged: set[str], messages: list[str], rows: list[str]) -> Counts:
    held = set(rows)
    return Counts(
        sent=len(sent),
        acknowledged=len(acknowledged),
        messages=len(messages),
        in_topics=len(set(messages)),
        rows=len(rows),
        in_lake=len(held),
        lost=len(acknowledged - held),
        unacknowledged=len((held & sent) - acknowledged),
        unknown=len(held - sent),
    )


def _messages(config: CroupierConfig, stream: str) -> list[str]:
    """Ids of all messages, by a consumer that knows nothing of Croupier but its JSON."""
    kafka = config.log.kafka
    consumer = open_client(KafkaConsumer, enable_auto_commit=False, **client_settings(kafka))
    with closing(consumer):
        name = f"{kafka.topic_prefix}.{LOOP}.{stream}"
        places = [TopicPartition(name, number) for number in range(PARTITIONS)]
        ends = consumer.end_offsets(places)
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        found: list[str] = []
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(1000).values():
                found += [_id(each.value, stream) for each in batch]
        return found


def _id(value: bytes, stream: str) -> str:
    event: dict[str, str] = msgspec.json.decode(value)
    return event["decision_id" if stream == "decisions" else "outcome_id"]


def _same(lake: Lake, reference: Lake, name: TableName) -> bool:
    left, right = (
        each.scan(name, LOOP).collect().sort("partition", "offset") for each in (lake, reference)
    )
    try:
        assert_frame_equal(left, right)
    except AssertionError:
        return False
    return True


def _wrong(interactions: pl.DataFrame, told: Told) -> int:
    """How many have a reward that they can't have."""
    count = 0
    for decision_id, reward, source in interactions.select(
        "decision_id", "reward", "reward_source"
    ).iter_rows():
        possible = set()
        if decision_id in told.outcomes_sent:
            possible.add((reward_of(decision_id), "observed"))
        if decision_id not in told.outcomes:
            possible.add((0.0, "default"))
        count += (reward, source) not in possible
    return count
