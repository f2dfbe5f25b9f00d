"""``croupier evaluate --policy``: figures, tables, JSON, figures to look at, and refusals."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import matplotlib.image
import msgspec
import polars as pl
import pytest

from croupier.offline.compare import Comparison
from tests.cli.test_batch import CONFIG, Command, hour_ago
from tests.offline.shop import Shop
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.lake import Lake

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

POLICIES = ("--policy", "1", "--policy", "champion", "--policy", "logged", "--policy", "uniform")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two nights' work; tests take a copy."""
    directory = tmp_path_factory.mktemp("nights")
    (directory / "croupier.toml").write_text(CONFIG)
    (directory / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        shop = Shop(directory / "data", random_world(3, 4, seed=3), now=hour_ago())
        for _ in range(2):
            shop.day(700)
            shop.night()
    return directory


@pytest.fixture
def command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Works on a copy; the artifacts of runs stay where they are."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Command(tmp_path, capsys)


def judged(command: Command) -> pl.DataFrame:
    rows = command.lake.scan("interactions", "shop").filter(pl.col("fold") < 300).collect()
    return rows.sort("offset")


def test_policies_are_compared_on_rows_that_none_has_learned_from(command: Command) -> None:
    done = command("evaluate", *POLICIES, "--by", "x", "--by", "day", "--json")
    assert done.code == 0, done.err
    found = msgspec.convert(done.facts["shop"], Comparison)
    rows = judged(command)
    assert found.total.rows == len(rows)
    names = [each.name for each in found.total.policies]
    assert names[0] == "generation 1"
    assert names[1].startswith("champion (generation ")
    assert names[2:] == ["logged", "uniform"]
    logged = found.total.policies[2]
    for finding in logged.values.values():
        assert finding.value == pytest.approx(rows["reward"].mean(), abs=1e-12)
    # SNIPS of uniform draws, by hand.
    weight = 0.25 / rows["propensity"].to_numpy()
    by_hand = weight @ rows["reward"].to_numpy() / weight.sum()
    assert found.total.policies[3].values["snips"].value == pytest.approx(by_hand, abs=1e-12)
    assert {each.key for each in found.groups["x"]} == {"x0", "x1", "x2"}
    assert sum(each.rows for each in found.groups["x"]) == len(rows)
    assert found.health.parts[0].replayed == len(rows)
    assert found.quality.state == "context"
    assert found.quality.tq is not None
    assert 0.0 < found.quality.tq <= 1.0


def test_what_is_shown(command: Command) -> None:
    told = command("evaluate", *POLICIES, "--by", "x", "--correction", "holm")
    assert told.code == 0, told.err
    for said in (
        "shop: can the log be believed?",
        "tell what policies are worth?",
        "less generation 1",
        "p (Holm)",
        "shop: by x, snips",
        "hold at once with 95 % (Bonferroni)",
        "shop: TQ is 0.",
        "Reward model: the oracle of champion",
    ):
        assert said in told.out
    # What the log is worth comes before what policies are.
    assert told.out.index("can the log be believed") < told.out.index("less generation 1")


@pytest.mark.parametrize(
    ("estimator", "interval", "said"),
    [
        ("switch", "normal", "own-expectation"),
        ("dros", "outer", "outer is for one policy's value"),
        ("snips", "empirical_bernstein", "snips has empirical-likelihood, delta, but not"),
        ("ips", "clopper-pearson", "payoffs-not-binary"),
        ("sndr", "sequence", ""),
        ("clipped", "bootstrap", "own-expectation"),
    ],
)
def test_estimators_and_intervals(
    command: Command, estimator: str, interval: str, said: str
) -> None:
    """One that doesn't apply says why, and the value is there."""
    which = ("--estimator", estimator, "--interval", interval)
    told = command("evaluate", "--policy", "logged", "--policy", "1", *which)
    assert told.code == 0, told.err
    assert said in told.out
    facts = command("evaluate", "--policy", "logged", "--policy", "1", *which, "--json").facts
    for policy in facts["shop"]["total"]["policies"]:
        (finding,) = policy["values"].values()
        assert finding["value"] is not None
        assert (finding["estimate"] is None) == (finding["why_none"] is not None)


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_figure_and_a_file(command: Command, ending: str) -> None:
    figure, told = command.directory / f"figure.{ending}", command.directory / "told.json"
    asked = ("--policy", "baseline", "--policy", "fixed:a1", "--estimator", "ips")
    done = command("evaluate", *asked, "--plot", figure, "--output", told, "--json")
    assert done.code == 0, done.err
    assert msgspec.json.decode(told.read_bytes()) == done.facts
    if ending == "png":
        picture: Any = matplotlib.image.imread(figure)
        assert picture.shape[0] > 400
        assert picture.shape[1] > 1000
        # Not an empty sheet.
        assert picture[..., :3].std() > 0.01
        return
    text = figure.read_text()
    assert text.startswith("<!doctype html>" if ending == "html" else "<?xml")
    assert "<svg" in text
    assert "<script" not in text


def test_the_best_fixed_action_is_chosen_by_other_rows(command: Command) -> None:
    facts = command("evaluate", "--policy", "best-fixed", "--estimator", "ips", "--json").facts
    found = msgspec.convert(facts["shop"], Comparison)
    rows = command.lake.scan("interactions", "shop").collect()
    assert found.total.rows == rows.filter(pl.col("fold") < 300).height
    (policy,) = found.total.policies
    learned = rows.filter(pl.col("fold") >= 300)
    means = {
        action: (
            learned["reward"] * (learned["action_id"] == action) / learned["propensity"]
        ).mean()
        for action in ("a0", "a1", "a2", "a3")
    }
    ranked = sorted(means, key=lambda each: means[each] or 0.0)
    assert policy.name in {f"best-fixed ({each})" for each in ranked[-2:]}


def test_policies_that_never_learn_are_judged_on_all_rows(command: Command) -> None:
    facts = command("evaluate", "--policy", "logged", "--policy", "uniform", "--json").facts
    found = msgspec.convert(facts["shop"], Comparison)
    assert found.total.rows == command.lake.scan("interactions", "shop").collect().height
    assert found.model == "sklearn oracles, fitted crosswise"


def spoil(lake: Lake, change: pl.Expr) -> None:
    """Put other interactions in the place of a lake's."""
    rows = lake.scan("interactions").collect()
    lake.delete("interactions", "true")
    lake.append("interactions", rows.with_columns(change))


def test_a_log_that_can_t_be_believed_gives_reasons_and_no_figures(command: Command) -> None:
    """Propensities of another policy: what was drawn with 0.925 is said to have had 0.25."""
    rows = command.lake.scan("interactions").collect()
    size = len(rows["action_ids"][0])
    uniform = pl.lit([1.0 / size] * size)
    spoil(command.lake, uniform.alias("pmf"))
    spoil(command.lake, pl.lit(1.0 / size).alias("propensity"))
    figure = command.directory / "figure.png"
    asked = ("evaluate", "--policy", "logged", "--policy", "uniform")
    told = command(*asked, "--plot", figure)
    assert told.code == 1
    assert "no figures (--anyway gives them): the draws of generation" in told.out
    assert "come out differently" in told.out
    assert "less logged" not in told.out
    assert "TQ" not in told.out
    assert not figure.exists()
    facts = command(*asked, "--json").facts["shop"]
    assert not facts.keys() & {"total", "groups"}
    assert facts["refusals"]
    assert facts["quality"].keys() == {"state", "coverage"}
    assert facts["health"]["parts"][0]["replay_mismatches"] > 0
    anyway = command(*asked, "--anyway", "--plot", figure)
    assert anyway.code == 0
    assert "not to be believed: the draws of generation" in anyway.out
    assert "less logged" in anyway.out
    assert figure.exists()


def test_a_log_that_says_too_little_is_refused(command: Command) -> None:
    strict = CONFIG + "[nightly.gate]\nmin_ess = 100000\n"
    (command.directory / "croupier.toml").write_text(strict)
    told = command("evaluate", "--policy", "logged", "--policy", "1")
    assert told.code == 1
    assert "effective sample size" in told.out
    assert command("evaluate", "--policy", "logged", "--policy", "1", "--anyway").code == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--policy", "zz"], "policy: expected a generation's number, champion, logged, uniform"),
        (["--policy", "7"], "policy: expected a generation of shop (0, 1, 2), got 7"),
        (["--policy", "fixed:zz"], "policy: expected an action of the log, got fixed:zz"),
        (["--policy", "1", "--policy", "1"], "policy: expected every policy once, got '1' again"),
        (["--policy", "1", "--generation", "1"], "generation: expected it as a --policy"),
        (["--policy", "1", "--estimator", "zz"], "estimator: expected one of ips, snips"),
        (["--policy", "1", "--interval", "zz"], "interval: expected one of empirical-likelihood"),
        (["--policy", "1", "--by", "zz"], "by: expected day, generation, or what some context"),
        (["--policy", "1", "--confidence", "1"], "confidence: expected a number in (0, 1)"),
        (["--policy", "1", "--plot", "x.pdf"], "plot: expected a name that ends in .png, .svg"),
        (
            ["--policy", "1", "--output", "/none/x"],
            "output: expected a file in a directory that is",
        ),
        (["--plot", "x.png"], "plot: expected at least one --policy with it"),
        (["--estimator", "ips"], "estimator: expected at least one --policy with it"),
    ],
)
def test_a_mistake_is_one_line(command: Command, asked: list[str], said: str) -> None:
    assert command.refused("evaluate", *asked).startswith(said)


def test_a_baseline_that_the_log_doesn_t_tell_is_one_line(command: Command) -> None:
    spoil(command.lake, pl.lit(None, dtype=pl.Int64).alias("baseline"))
    said = command.refused("evaluate", "--policy", "baseline")
    assert said == "policy: expected no baseline of a log that doesn't tell it"
