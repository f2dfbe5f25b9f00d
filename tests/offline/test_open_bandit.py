"""The sample of the Open Bandit Dataset: what is in it, in the lake and out of the evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import polars as pl
import pytest
from scipy.stats import binomtest

from croupier.offline.evaluate import logged_value
from croupier.offline.interactions import logged_requests, training_rows
from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.open_bandit import ImportReport, import_open_bandit, read_open_bandit
from croupier.policy.errors import InvalidInputError
from croupier.policy.loop import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = Path(__file__).parents[2] / "examples" / "open_bandit"
ITEMS = 34


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("imported") / "lake")
    steps: list[tuple[int, int]] = []
    reports = import_open_bandit(SAMPLE, lake, progress=lambda *step: steps.append(step))
    assert reports == [
        ImportReport(loop="open-bandit-bts-men", added=10_000, present=0, positive=69),
        ImportReport(loop="open-bandit-random-men", added=10_000, present=0, positive=46),
    ]
    assert steps.count((10_000, 10_000)) == 2
    return lake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "sample"
    shutil.copytree(SAMPLE, copy)
    return copy


@pytest.mark.parametrize("policy", ["random", "bts"])
def test_every_row_is_in_the_lake(imported: Lake, policy: str) -> None:
    raw = pl.read_parquet(SAMPLE / f"{policy}_men.parquet")
    rows = imported.scan("interactions", f"open-bandit-{policy}-men").sort("offset").collect()
    assert len(rows) == rows["decision_id"].n_unique() == len(raw) == 10_000
    assert rows["reward"].to_list() == raw["click"].cast(pl.Float64).to_list()
    assert rows["propensity"].to_list() == raw["propensity_score"].to_list()
    assert rows["action_id"].to_list() == raw["item_id"].cast(pl.String).to_list()
    moments = raw["timestamp"].str.to_datetime(time_unit="us", time_zone="UTC")
    assert rows["ts"].to_list() == moments.to_list()
    assert rows["fold"].to_list() == [fold_of(f"{policy}_men:{n}") for n in range(10_000)]
    assert rows.schema == SCHEMAS["interactions"]
    for column in ("generation", "pmf", "scores", "delay_s", "slot"):
        assert rows[column].is_null().all()


def test_propensities_are_those_of_their_policies(imported: Lake) -> None:
    """Uniform over 34 items: 1/34 in every row. Both sums are those of the sample's files."""
    sums = {
        name: imported.scan("interactions", f"open-bandit-{name}-men")
        .select(pl.col("propensity").sum())
        .collect()
        .item()
        for name in ("random", "bts")
    }
    assert sums["random"] == pytest.approx(10_000 / ITEMS, rel=1e-4)
    raw = pl.read_parquet(SAMPLE / "bts_men.parquet")["propensity_score"]
    assert sums["bts"] == pytest.approx(raw.sum(), rel=1e-12)
    # The mean of 1/p over draws from a policy is the number of its actions; 0.1 % is 4 errors.
    random = imported.scan("interactions", "open-bandit-random-men").collect()
    assert (1.0 / random["propensity"]).mean() == pytest.approx(ITEMS, rel=1e-3)


def test_requests_hold_what_the_files_hold(imported: Lake) -> None:
    raw = pl.read_parquet(SAMPLE / "bts_men.parquet")
    items = pl.read_parquet(SAMPLE / "item_context_men.parquet").sort("item_id")
    rows = imported.scan("interactions", "open-bandit-bts-men").sort("offset").collect()
    requests = list(logged_requests(rows))
    learned = list(training_rows(rows))
    for number in (0, 1, 4321, 9999):
        logged, request = raw.row(number, named=True), requests[number]
        users = {f"user_feature_{n}": logged[f"user_feature_{n}"] for n in range(4)}
        assert request.context == users | {"position": str(logged["position"])}
        assert len(request.actions) == ITEMS
        assert request.actions[request.chosen].id == str(logged["item_id"])
        assert request.eligible is None
        for action, item in zip(request.actions, items.iter_rows(named=True), strict=True):
            assert action.id == str(item["item_id"])
            assert action.features["affinity"] == logged[f"user-item_affinity_{action.id}"]
            assert action.features["item_feature_0"] == item["item_feature_0"]
            assert action.features["item_feature_3"] == item["item_feature_3"]
        assert learned[number].reward == logged["click"]
        assert (learned[number].propensity, learned[number].weight) == (
            logged["propensity_score"],
            1.0,
        )


def test_importing_again_adds_nothing(imported: Lake) -> None:
    version = imported.version("interactions")
    for report in import_open_bandit(SAMPLE, imported):
        assert (report.added, report.present) == (0, 10_000)
    assert imported.version("interactions") == version


def test_what_is_missing_is_added(folder: Path, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    log = folder / "random_men.parquet"
    whole = pl.read_parquet(log)
    whole[:150].write_parquet(log)
    (first,) = import_open_bandit(log, lake, loop="fashion")
    whole[:200].write_parquet(log)
    (second,) = import_open_bandit(log, lake, loop="fashion")
    assert (first.loop, first.added, second.added, second.present) == ("fashion", 150, 50, 150)
    rows = lake.scan("interactions", "fashion").collect()
    assert sorted(rows["offset"]) == list(range(200))


def test_a_name_is_for_a_single_log(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="loop: expected a single log to name, got 2"):
        import_open_bandit(folder, Lake(tmp_path / "lake"), loop="fashion")


def rewritten(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        change(pl.read_parquet(folder / name)[:50]).write_parquet(folder / name)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no items": (
        lambda folder: (folder / "item_context_men.parquet").unlink(),
        "expected a Parquet file at .*item_context_men.parquet",
    ),
    "not parquet": (
        lambda folder: (folder / "random_men.parquet").write_text("timestamp,item_id\n"),
        "expected a Parquet file at .*random_men.parquet",
    ),
    "empty file": (
        lambda folder: (folder / "random_men.parquet").write_bytes(b""),
        "expected a Parquet file at .*random_men.parquet",
    ),
    "no clicks": (
        rewritten("random_men.parquet", lambda rows: rows.drop("click", "position")),
        "random_men.parquet: expected columns position, click",
    ),
    "no affinity": (
        rewritten("random_men.parquet", lambda rows: rows.drop("user-item_affinity_7")),
        "random_men.parquet: expected columns user-item_affinity_7",
    ),
    "no item features": (
        rewritten("item_context_men.parquet", lambda rows: rows.drop("item_feature_2")),
        "item_context_men.parquet: expected columns item_feature_2",
    ),
    "an unknown item": (
        rewritten(
            "random_men.parquet", lambda rows: rows.with_columns(item_id=pl.lit(99, pl.Int64))
        ),
        "random_men row 0 item_id: expected a known item, got 99",
    ),
    "a propensity of 0": (
        rewritten("random_men.parquet", lambda rows: rows.with_columns(propensity_score=0.0)),
        r"random_men row 0 propensity_score: expected \(0, 1\], got 0.0",
    ),
    "no propensity": (
        rewritten(
            "random_men.parquet",
            lambda rows: rows.with_columns(propensity_score=pl.lit(None, pl.Float64)),
        ),
        r"random_men row 0 propensity_score: expected \(0, 1\], got None",
    ),
    "no reward": (
        rewritten(
            "random_men.parquet", lambda rows: rows.with_columns(click=pl.lit(None, pl.Int64))
        ),
        "random_men row 0 click: expected 0 or 1, got None",
    ),
    "no time": (
        rewritten(
            "random_men.parquet",
            lambda rows: rows.with_columns(timestamp=pl.lit(None, pl.String)),
        ),
        "random_men timestamp: expected a moment in every row",
    ),
    "a time that is none": (
        rewritten("random_men.parquet", lambda rows: rows.with_columns(timestamp=pl.lit("noon"))),
        "random_men timestamp: expected moments",
    ),
}


@pytest.mark.parametrize("which", DAMAGES)
def test_a_damaged_sample_is_named(folder: Path, tmp_path: Path, which: str) -> None:
    damage, message = DAMAGES[which]
    damage(folder)
    lake = Lake(tmp_path / "lake")
    with pytest.raises(InvalidInputError, match=message):
        import_open_bandit(folder / "random_men.parquet", lake)
    assert not lake.exists("interactions")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_place_without_logs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=f"path: expected Open Bandit logs .* at .*{name}"):
        import_open_bandit(tmp_path / name, Lake(tmp_path / "lake"))


def test_moments_may_be_moments_already(folder: Path) -> None:
    """Other tools write them as such."""
    log = folder / "random_men.parquet"
    raw = pl.read_parquet(log)[:50]
    raw.write_parquet(log)
    as_text = read_open_bandit(log, "x")
    moments = pl.col("timestamp").str.to_datetime(time_unit="ns", time_zone="UTC")
    for typed in (moments, moments.dt.replace_time_zone(None)):
        raw.with_columns(typed).write_parquet(log)
        assert read_open_bandit(log, "x").select("ts", "date").equals(as_text.select("ts", "date"))


def test_a_row_is_json_of_its_own(imported: Lake) -> None:
    """Whatever reads the lake next needs no Croupier."""
    row = imported.scan("interactions", "open-bandit-bts-men").head(1).collect().row(0, named=True)
    assert set(msgspec.json.decode(row["context"])) == {
        "position",
        *(f"user_feature_{n}" for n in range(4)),
    }
    assert len(msgspec.json.decode(row["actions"])) == ITEMS


def test_a_logs_own_value_is_the_mean_near_the_exact_binomial_interval(imported: Lake) -> None:
    clicks = {"open-bandit-random-men": 46, "open-bandit-bts-men": 69}
    for loop, k in clicks.items():
        value = logged_value(imported.scan("interactions", loop).collect(), LoopConfig())
        exact = binomtest(k, 10_000).proportion_ci(0.95)
        assert value.value == pytest.approx(k / 10_000, abs=1e-15)
        assert value.nonzero_rewards == k
        # Clopper and Pearson's interval is an independent one; a tenth of its width either way.
        slack = 0.1 * (exact.high - exact.low)
        assert value.lower == pytest.approx(exact.low, abs=slack)
        assert value.upper == pytest.approx(exact.high, abs=slack)
