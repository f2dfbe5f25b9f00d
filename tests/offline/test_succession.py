"""Rollbacks and overrides: who is champion, what the records say of it, and what nights do then."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pytest

from croupier.offline.champions import evidence_since, rollback_target
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.promotion_report import PromotionReport, ReportEvent
from croupier.offline.registry import Change, Registry
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.traffic import Split
from tests.offline.shop import CONFIG, Shop
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

WORLD = World(random_world(3, 4, seed=3).rewards, excluded=(None, 1, None))
T0 = datetime(2026, 9, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Generation 1 has passed the gate, and a person has put generation 2 over it."""
    shop = Shop(tmp_path_factory.mktemp("two"), WORLD)
    for _ in range(2):
        shop.day(800)
        shop.night()
    assert shop.registry.champion("shop") == 1
    shop.now += 1
    shop.nightly.override("shop", 2, now_us=shop.now, reason="the sale begins", by="ann")
    shutil.copytree(shop.root / "mlartifacts", shop.root / "untouched")
    return shop


@pytest.fixture
def shop(tmp_path: Path, two_nights: Shop) -> Shop:
    """A copy; what MLflow keeps of runs stays where it is, and is put back."""
    shutil.rmtree(two_nights.root / "mlartifacts")
    shutil.copytree(two_nights.root / "untouched", two_nights.root / "mlartifacts")
    shutil.copytree(two_nights.root, tmp_path, dirs_exist_ok=True)
    shop = Shop(tmp_path, WORLD, now=two_nights.now + 1)
    shop.count = two_nights.count
    return shop


def report_of(shop: Shop, number: int) -> PromotionReport:
    found = shop.nightly.promotion_report("shop", number)
    assert found is not None
    return found


def events(shop: Shop, number: int) -> list[tuple[str, str, str]]:
    return [(each.kind, each.by, each.told) for each in report_of(shop, number).events]


def test_a_rollback_is_recorded_everywhere_and_served(shop: Shop) -> None:
    assert [kind for kind, _, _ in events(shop, 1)] == ["judged", "promoted"]
    assert [kind for kind, _, _ in events(shop, 2)] == ["judged", "overridden"]
    done = shop.nightly.rollback("shop", now_us=shop.now, reason="returns went up", by="bob")
    assert (done.left, done.restored) == (2, 1)
    assert shop.registry.champion("shop") == 1
    rows, moment = shop.rows(), datetime.fromtimestamp(shop.now / 1e6, tz=UTC)
    back = ("rolled_back", "rolled_back_by", "rolled_back_to", "rollback_reason", "status")
    assert [rows[2][name] for name in back] == [moment, "bob", 1, "returns went up", "rolled_back"]
    assert (rows[1]["status"], rows[1]["restored"]) == ("champion", moment)
    assert rows[1]["promoted"] < moment
    # What the person who had overridden the gate said stays on record.
    assert (rows[2]["override_reason"], rows[2]["override_by"]) == ("the sale begins", "ann")
    change = Change(by="bob", ts=shop.now, reason="returns went up", what="rolled back from 2 to 1")
    assert shop.registry.changes("shop") == [change]
    assert events(shop, 2)[2:] == [("rolled back", "bob", "to generation 1: returns went up")]
    assert events(shop, 1)[2:] == [("restored", "bob", "after generation 2: returns went up")]
    shop.follow()
    plan = shop.scorer.plan("shop")
    assert plan is not None
    assert plan.champion.number == 1
    assert shop.unproven_champions() == []


def test_one_rollback_after_another_ends_at_the_cold_start(shop: Shop) -> None:
    for left, restored in ((2, 1), (1, 0)):
        shop.now += 1
        done = shop.nightly.rollback("shop", now_us=shop.now, reason="again", by="bob")
        assert (done.left, done.restored) == (left, restored)
        assert shop.registry.champion("shop") == restored
    assert {n: row["status"] for n, row in shop.rows().items()} == {
        0: "champion",
        1: "rolled_back",
        2: "rolled_back",
    }
    assert shop.registry.split("shop") == Split(generation=0)
    before, version = shop.rows(), shop.lake.version("generations")
    with pytest.raises(InvalidInputError, match="shop has none before the cold start"):
        shop.nightly.rollback("shop", now_us=shop.now, reason="again", by="bob")
    assert (shop.rows(), shop.lake.version("generations")) == (before, version)


@pytest.mark.parametrize(
    ("to", "reason", "error", "message"),
    [
        (None, " ", InvalidInputError, "reason: expected why the champion is rolled back"),
        (None, "x" * 501, InvalidInputError, "reason: expected at most 500 characters"),
        (2, "why", InvalidInputError, r"to: expected an earlier champion of shop \(0, 1\), got 2"),
        (7, "why", InvalidInputError, r"any other takes croupier promote --override"),
    ],
)
def test_a_rollback_that_can_t_be_meant_changes_nothing(
    shop: Shop, to: int | None, reason: str, error: type[Exception], message: str
) -> None:
    before, version = shop.rows(), shop.lake.version("generations")
    with pytest.raises(error, match=message):
        shop.nightly.rollback("shop", now_us=shop.now, reason=reason, by="bob", to=to)
    assert (shop.rows(), shop.lake.version("generations")) == (before, version)
    assert shop.registry.champion("shop") == 2
    assert shop.registry.changes("shop") == []


def test_a_generation_that_can_t_be_read_is_not_restored(shop: Shop) -> None:
    class Damaged(Registry):
        def load(self, *arguments: Any, **_: Any) -> Any:
            raise GenerationError(f"generation {arguments[1]} can't be read")

    shop.nightly.registry = Damaged(shop.registry.tracking_uri, shop.root / "mlartifacts")
    with pytest.raises(GenerationError, match="generation 1 can't be read"):
        shop.nightly.rollback("shop", now_us=shop.now, reason="why", by="bob")
    assert shop.rows()[2]["rolled_back"] is None
    assert shop.registry.champion("shop") == 2


def test_a_canary_that_is_restored_is_no_canary_any_more(shop: Shop) -> None:
    shop.registry.set_canary("shop", 1, 0.1, Change(by="bob", ts=shop.now - 1))
    shop.nightly.rollback("shop", now_us=shop.now, reason="why", by="bob")
    assert shop.registry.split("shop") == Split(generation=1)


class Crashing(Registry):
    """A registry whose process ends right before or right after a rollback."""

    after = False

    def roll_back(self, loop: str, number: int, change: Change) -> None:
        if self.after:
            super().roll_back(loop, number, change)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_a_rollback_leaves_the_records_right(shop: Shop, *, after: bool) -> None:
    """The next night finishes it, or forgets it if nothing came of it."""
    crashing = Crashing(shop.registry.tracking_uri, shop.root / "mlartifacts")
    crashing.after = after
    nightly = Nightly(shop.lake, crashing, {"shop": CONFIG}, NightlyConfig())
    with pytest.raises(KeyboardInterrupt):
        nightly.rollback("shop", now_us=shop.now, reason="why", by="bob")
    shop.now += 1
    shop.nightly.record_champion("shop", shop.now)
    rows = shop.rows()
    champion = 1 if after else 2
    assert shop.registry.champion("shop") == champion
    assert [number for number, row in rows.items() if row["status"] == "champion"] == [champion]
    assert rows[2]["rollback_reason"] == ("why" if after else None)
    assert rows[2]["override_reason"] == "the sale begins"
    assert (rows[1]["override_reason"], rows[1]["override_by"]) == (None, None)
    told = [each.kind for each in report_of(shop, 2).events]
    assert (told[-1] == "rolled back") == after
    # A second look finds nothing to be done.
    version = shop.lake.version("generations")
    shop.nightly.record_champion("shop", shop.now + 1)
    assert shop.lake.version("generations") == version


def test_the_night_after_a_rollback_hears_only_what_came_since(shop: Shop) -> None:
    """It promotes neither what was rolled back nor its like on the evidence of before."""
    # Generation 1 had passed; without it, the cold start serves again.
    shop.nightly.rollback("shop", now_us=shop.now, reason="why", by="bob", to=0)
    shop.follow()
    (night,) = shop.night().loops
    assert (night.challenger, night.champion) == (None, 0)
    assert night.skipped == "nothing has come since generation 2 was trained"
    for number in (1, 2):
        challenger = shop.registry.load("shop", number)
        with pytest.raises(NotEnoughDataError, match="after a rollback only decisions since"):
            shop.nightly.promote_on_evidence(challenger, now_us=shop.now)
    since = shop.rows()[2]["rolled_back"]
    # A few decisions more: a challenger learns from all there are, and waits for its evidence.
    shop.day(40)
    (night,) = shop.night().loops
    assert (night.challenger, night.champion, night.verdict) == (3, 0, None)
    assert night.skipped is not None
    assert f"only decisions since {since:%Y-%m-%d %H:%M:%S} count" in night.skipped
    row = shop.rows()[3]
    assert (row["parent"], row["status"]) == (0, "challenger")
    assert row["training_rows"] > 1000
    # In the end there is evidence, which counts all the same.
    shop.day(900)
    (night,) = shop.night().loops
    assert (night.challenger, night.champion) == (4, 4)
    assert night.evaluation is not None
    decided = shop.lake.scan("interactions").filter(pl.col("ts") > since, pl.col("fold") < 300)
    assert night.evaluation.rows == len(decided.collect())
    judged = report_of(shop, 4).judged
    assert judged is not None
    assert judged.since == round(since.timestamp() * 1e6)
    # From then on everything counts again.
    assert evidence_since(shop.rows(), 4) is None
    assert evidence_since(shop.rows(), 2) == since


def row(promoted: int | None = None, **more: int) -> dict[str, Any]:
    """A row by the days of what happened to its generation."""
    days = {"promoted": promoted, "restored": None, "rolled_back": None} | more
    return {name: None if day is None else T0 + timedelta(days=day) for name, day in days.items()}


@pytest.mark.parametrize(
    ("rows", "champion", "target"),
    [
        # In the order of promotions, whatever the numbers.
        ({0: row(), 1: row(1), 2: row(3), 3: row(2)}, 2, 3),
        # What never was champion is no aim.
        ({0: row(), 1: row(1), 2: row(), 3: row(3)}, 3, 1),
        # Nor what was rolled back, but what was made champion again since is.
        ({0: row(), 1: row(1), 2: row(2, rolled_back=3), 3: row(4)}, 3, 1),
        ({0: row(), 1: row(1), 2: row(4, rolled_back=3), 3: row(5)}, 3, 2),
        # Back to 2 over 3: after 6 comes 2, which was champion before it, and then 1.
        ({0: row(), 1: row(1), 2: row(2, restored=5), 3: row(3), 6: row(6)}, 6, 2),
        ({0: row(), 1: row(1), 2: row(2, restored=5), 3: row(3)}, 2, 1),
        # A reset can be taken back, and a promotion after it leads to the cold start.
        ({0: row(3), 1: row(1), 2: row(2)}, 0, 2),
        ({0: row(3), 1: row(1), 2: row(2), 3: row(4)}, 3, 0),
        ({1: row(1)}, 1, 0),
    ],
)
def test_what_a_rollback_goes_back_to(
    rows: dict[int, dict[str, Any]], champion: int, target: int
) -> None:
    assert rollback_target(rows, "shop", champion, None) == target
    assert rollback_target(rows, "shop", champion, target) == target


def test_a_reset_is_told_in_the_report(shop: Shop) -> None:
    shop.nightly.reset("shop", now_us=shop.now, reason="a new catalogue", by="key")
    assert events(shop, 2)[-1] == ("reset", "key", "the cold start serves: a new catalogue")
    assert shop.rows()[0]["override_by"] == "key"


def test_an_override_of_what_was_never_judged_has_a_report_too(shop: Shop) -> None:
    generation = shop.nightly.generation("shop", 2)
    assert generation.provenance is not None
    copied = msgspec.structs.replace(generation.provenance, parent=2)
    shop.nightly.publish(
        type(generation)("shop", 3, generation.exploration, generation.oracle, copied)
    )
    assert shop.nightly.promotion_report("shop", 3) is None
    shop.nightly.override("shop", 3, now_us=shop.now, reason="it must be", by="ann")
    found = report_of(shop, 3)
    assert found.judged is None
    assert found.parent == 2
    event = ReportEvent(ts=shop.now, kind="overridden", told="it must be", by="ann")
    assert found.events == (event,)
