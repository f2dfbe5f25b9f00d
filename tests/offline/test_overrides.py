"""Overrides that people ask for as events: done by the batch side, once, and on record."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from croupier.eventlog.log import Record
from croupier.offline.overrides import act_on_overrides, asked_overrides, state_of
from croupier.offline.sink import sink
from croupier.policy.events import Override
from tests.offline.shop import MINUTE, Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two generations, of which the gate has let through the first."""
    root = tmp_path_factory.mktemp("shop")
    shop = Shop(root, random_world(2, 3, seed=4))
    for _ in range(2):
        shop.day(400)
        shop.night()
    assert set(shop.rows()) == {0, 1, 2}
    return root


@pytest.fixture
def shop(trained: Path, tmp_path: Path) -> Shop:
    root = tmp_path / "shop"
    shutil.copytree(trained, root)
    # MLflow's database holds absolute paths of artifacts; those of the original are still there.
    again = Shop(root, random_world(2, 3, seed=4), now=_now(trained))
    again.count = 10_000
    return again


def _now(trained: Path) -> int:
    rows = Shop(trained, random_world(2, 3, seed=4)).rows()
    latest: datetime = max(row["created"] for row in rows.values() if row["created"] is not None)
    return round(latest.timestamp() * 1e6) + MINUTE


def ask(shop: Shop, action: Any, generation: int, champion: int, **changes: Any) -> None:
    shop.now += MINUTE
    values: dict[str, Any] = {
        "override_id": f"o-{shop.now}",
        "loop": "shop",
        "reason": "season",
        "by": "ada",
        "ts": shop.now,
    }
    event = Override(action=action, generation=generation, champion=champion, **values | changes)
    with shop.log() as log:
        log.append([Record.of(event)])
        sink(log, shop.lake)


def state(shop: Shop) -> str:
    asked = asked_overrides(shop.lake, "shop")
    return state_of(asked[-1], shop.rows(), shop.registry.champion("shop"), last=True)


def act(shop: Shop) -> str | None:
    shop.now += MINUTE
    with shop.lake.lock():
        return act_on_overrides(shop.nightly, "shop", now_us=shop.now)


def other(shop: Shop) -> tuple[int, int]:
    champion = shop.registry.champion("shop")
    return champion, 2 if champion == 1 else 1


def test_the_next_night_promotes_what_was_asked_for_and_says_who_and_why(shop: Shop) -> None:
    champion, wanted = other(shop)
    ask(shop, "promote", wanted, champion)
    assert state(shop) == "waits"
    assert shop.registry.champion("shop") == champion
    report = shop.night()
    assert report.loops[0].overridden == f"generation {wanted} promoted by override of ada"
    row = shop.rows()[wanted]
    assert (row["override_by"], row["override_reason"]) == ("ada", "season")
    assert state(shop) == "done"
    assert shop.unproven_champions() == []


def test_an_override_is_done_once(shop: Shop) -> None:
    champion, wanted = other(shop)
    ask(shop, "promote", wanted, champion)
    assert act(shop) is not None
    assert shop.registry.champion("shop") == wanted
    assert act(shop) is None
    # Even after somebody went back, and with a clock that lags behind the scorer's.
    with shop.lake.lock():
        shop.nightly.override("shop", champion, now_us=shop.now + MINUTE, reason="no", by="ben")
    assert act(shop) is None
    assert shop.registry.champion("shop") == champion
    shop.now -= 60 * MINUTE
    assert act(shop) is None


def test_a_rollback_goes_the_same_way(shop: Shop) -> None:
    champion = shop.registry.champion("shop")
    ask(shop, "rollback", 0, champion, reason="returns went up")
    assert act(shop) == "rolled back to generation 0 by override of ada"
    row = shop.rows()[champion]
    assert (row["rolled_back_by"], row["rollback_reason"]) == ("ada", "returns went up")
    assert row["rolled_back_to"] == shop.registry.champion("shop") == 0
    assert state(shop) == "done"
    assert act(shop) is None


def test_the_last_word_counts_and_a_changed_champion_voids_it(shop: Shop) -> None:
    champion, wanted = other(shop)
    ask(shop, "promote", wanted, champion + 7, reason="of another champion")
    assert state(shop) == "void"
    assert act(shop) is None
    ask(shop, "promote", wanted, champion, reason="first")
    ask(shop, "rollback", 0, champion, reason="second thoughts")
    assert act(shop) == "rolled back to generation 0 by override of ada"
    first = asked_overrides(shop.lake, "shop")[1]
    assert state_of(first, shop.rows(), 0, last=False) == "void"


def test_what_can_not_be_done_is_said_and_changes_nothing(shop: Shop) -> None:
    champion, _ = other(shop)
    ask(shop, "promote", 99, champion)
    told = act(shop)
    assert told is not None
    assert "could not be done" in told
    assert shop.registry.champion("shop") == champion
    assert 99 not in shop.rows()
    ask(shop, "rollback", 2 if champion == 1 else 1, champion)
    told = act(shop)
    assert told is not None
    assert ("could not be done" in told) is (shop.registry.champion("shop") == champion)
