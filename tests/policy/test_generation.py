"""Generations: immutable on disk, whole or absent after a crash, and exact when they decide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError, InvalidInputError, ScoringError
from croupier.policy.estimates import Estimates
from croupier.policy.events import Action
from croupier.policy.exploration import Conservative, Exploration, Greedy, SquareCB, Uniform
from croupier.policy.generation import Generation, Provenance, cold_start, registered_model_name
from croupier.policy.oracle import RidgeConfig, RidgeOracle, SklearnConfig, SklearnOracle
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from croupier.policy.estimates import Uncertainty
    from croupier.policy.events import Features

PROVENANCE = Provenance(
    parent=2,
    lake_version=17,
    code_version="0.1.0",
    loop_config="ab" * 32,
    seed=5,
    training_rows=80,
    created_us=1_700_000_000_000_000,
)


def make_generation() -> Generation:
    config = SklearnConfig(encoder=EncoderConfig(bits=12))
    oracle = SklearnOracle(config, random_state=5).fit(random_rows(80))
    exploration = SquareCB(gamma_scale=20.0, floor=0.01)
    return Generation("news", 3, exploration, oracle, PROVENANCE)


class GivenScores:
    """An oracle that answers what it was told to."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = np.array(scores)

    def score(self, context: Features, actions: Sequence[Action]) -> NDArray[np.float64]:
        del context, actions
        return self.scores

    def estimate(
        self, context: Features, actions: Sequence[Action], needs: Uncertainty = frozenset()
    ) -> Estimates:
        del needs
        return Estimates(self.score(context, actions))

    def save(self, directory: Path) -> None:
        (directory / "scores.txt").write_text(str(self.scores.tolist()))


class TestPmf:
    def test_is_the_explorations_of_the_oracles_scores(self) -> None:
        generation = make_generation()
        context, actions = random_request(np.random.default_rng(0))
        pmf, scores = generation.pmf(context, actions)
        assert scores is not None
        assert generation.oracle is not None
        np.testing.assert_array_equal(scores, generation.oracle.score(context, actions))
        expected = generation.exploration.pmf(scores, training_rows=80)
        np.testing.assert_array_equal(pmf, expected)
        # The schedule is the provenance's: another number of rows gives another pmf.
        assert not np.allclose(pmf, generation.exploration.pmf(scores, training_rows=1))

    def test_asks_the_oracle_for_what_the_exploration_wants(self) -> None:
        """For optimism, deviations, which this exploration could do without."""
        rows = random_rows(80)
        oracle = RidgeOracle(RidgeConfig(encoder=EncoderConfig(bits=12))).fit(rows)
        exploration = SquareCB(gamma_scale=100.0, optimism=0.01)
        generation = Generation("news", 3, exploration, oracle, PROVENANCE)
        context, actions = random_request(np.random.default_rng(0))
        pmf, scores = generation.pmf(context, actions)
        assert scores is not None
        told = oracle.estimate(context, actions, frozenset({"deviation"}))
        np.testing.assert_array_equal(scores, told.mean)
        np.testing.assert_array_equal(pmf, exploration.pmf(told, training_rows=80))
        assert not np.allclose(pmf, exploration.pmf(scores, training_rows=80))
        assert generation.choose(context, actions, 0.5) is None

    def test_of_the_cold_start_is_uniform_over_the_eligible(self) -> None:
        generation = cold_start("news")
        assert (generation.loop, generation.number) == ("news", 0)
        actions = [Action(name) for name in "abcd"]
        pmf, scores = generation.pmf({}, actions, np.array([True, False, True, True]))
        assert scores is None
        np.testing.assert_allclose(pmf, [1 / 3, 0.0, 1 / 3, 1 / 3])

    @pytest.mark.parametrize("scores", [[0.1], [0.1, 0.2, 0.3], [[0.1, 0.2]]], ids=str)
    def test_needs_as_many_scores_as_actions(self, scores: list[float]) -> None:
        generation = Generation("news", 1, Greedy(), GivenScores(scores), PROVENANCE)
        with pytest.raises(ScoringError, match="expected 2 scores"):
            generation.pmf({}, [Action("a"), Action("b")])

    @pytest.mark.parametrize("exploration", [Greedy(), Uniform()], ids=["greedy", "uniform"])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_needs_finite_scores_even_of_actions_that_are_excluded(
        self, exploration: Greedy | Uniform, bad: float
    ) -> None:
        """All scores are logged, and no log could hold these."""
        generation = Generation("news", 1, exploration, GivenScores([0.1, bad]), PROVENANCE)
        with pytest.raises(ScoringError, match="not finite"):
            generation.pmf({}, [Action("a"), Action("b")], np.array([True, False]))

    def test_passes_on_what_is_wrong_with_a_feature(self) -> None:
        with pytest.raises(InvalidInputError, match=r"context\.x"):
            make_generation().pmf({"x": object()}, [Action("a")])


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        saved = make_generation()
        saved.save(tmp_path / "deep" / "3")
        loaded = Generation.load(tmp_path / "deep" / "3")
        assert (loaded.loop, loaded.number) == ("news", 3)
        assert loaded.exploration == saved.exploration
        assert loaded.provenance == PROVENANCE
        rng = np.random.default_rng(1)
        for _ in range(20):
            request = random_request(rng)
            for left, right in zip(saved.pmf(*request), loaded.pmf(*request), strict=True):
                assert left is not None
                assert right is not None
                assert left.tobytes() == right.tobytes()

    @pytest.mark.parametrize(
        ("exploration", "new"),
        [
            (SquareCB(gamma_scale=3.0), {}),
            (SquareCB(optimism=0.01), {"optimism": 0.01}),
            (SquareCB(reward_min=-1.0), {"reward_min": -1.0}),
        ],
        ids=lambda each: each.describe() if isinstance(each, SquareCB) else "",
    )
    @pytest.mark.parametrize("guarded", [False, True])
    def test_tell_earlier_scorers_nothing_new_unless_there_is(
        self, tmp_path: Path, exploration: SquareCB, new: dict[str, float], guarded: bool
    ) -> None:
        """What refuses parameters it doesn't know still reads what has none of them."""
        played: Exploration = Conservative(inner=exploration) if guarded else exploration
        Generation("news", 3, played, None, None).save(tmp_path / "3")
        written = msgspec.json.decode((tmp_path / "3" / "manifest.json").read_bytes())
        table = written["exploration"]["inner"] if guarded else written["exploration"]
        before = {
            "kind": "squarecb",
            "floor": 0.0,
            "floor_method": "project",
            "gamma_scale": exploration.gamma_scale,
            "gamma_exponent": 0.5,
        }
        assert table == before | new
        assert Generation.load(tmp_path / "3").exploration == played

    def test_of_the_cold_start_round_trip(self, tmp_path: Path) -> None:
        cold_start("news").save(tmp_path / "0")
        assert Generation.load(tmp_path / "0") == cold_start("news")

    def test_are_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            make_generation().save(tmp_path / name)
        assert contents(tmp_path / "first") == contents(tmp_path / "second")

    def test_can_be_read_by_others(self, tmp_path: Path) -> None:
        make_generation().save(tmp_path / "3")
        assert (tmp_path / "3").stat().st_mode & 0o777 == 0o755

    def test_are_never_written_over(self, tmp_path: Path) -> None:
        make_generation().save(tmp_path / "3")
        before = contents(tmp_path / "3")
        with pytest.raises(GenerationError, match="never written over"):
            cold_start("news").save(tmp_path / "3")
        assert contents(tmp_path / "3") == before
        (tmp_path / "4").mkdir()
        with pytest.raises(GenerationError, match="never written over"):
            cold_start("news").save(tmp_path / "4")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]

    def test_that_another_process_put_there_meanwhile_are_not_written_over(
        self, tmp_path: Path
    ) -> None:
        class Slow(GivenScores):
            """Somebody else is done before this oracle is saved."""

            def save(self, directory: Path) -> None:
                cold_start("news").save(tmp_path / "3")
                super().save(directory)

        with pytest.raises(GenerationError, match="never written over"):
            Generation("news", 3, Greedy(), Slow([1.0]), PROVENANCE).save(tmp_path / "3")
        assert Generation.load(tmp_path / "3") == cold_start("news")
        assert [path.name for path in tmp_path.iterdir()] == ["3"]

    def test_leave_nothing_behind_when_the_oracle_cannot_be_saved(self, tmp_path: Path) -> None:
        unfitted = SklearnOracle(SklearnConfig())
        with pytest.raises(GenerationError, match="not fitted"):
            Generation("news", 1, Greedy(), unfitted, PROVENANCE).save(tmp_path / "1")
        assert list(tmp_path.iterdir()) == []


class TestDamage:
    """Whatever is changed in a saved generation, it is not loaded."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        make_generation().save(tmp_path / "3")
        return tmp_path / "3"

    def test_of_any_file_is_noticed(self, saved: Path) -> None:
        paths = [path for path in saved.rglob("*") if path.is_file()]
        assert len(paths) == 4
        for path in paths:
            intact = path.read_bytes()
            middle = len(intact) // 2
            for damaged in (
                intact[:-1],
                b"",
                intact + b"\n",
                intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :],
            ):
                path.write_bytes(damaged)
                with pytest.raises(GenerationError):
                    Generation.load(saved)
            path.unlink()
            with pytest.raises(GenerationError):
                Generation.load(saved)
            path.write_bytes(intact)
            Generation.load(saved)

    def test_of_a_parameter_in_the_manifest_is_noticed(self, saved: Path) -> None:
        manifest = saved / "manifest.json"
        edited = manifest.read_text().replace('"floor": 0.01', '"floor": 0.02')
        assert edited != manifest.read_text()
        manifest.write_text(edited)
        with pytest.raises(GenerationError, match=r"altered .*manifest\.json"):
            Generation.load(saved)

    @pytest.mark.parametrize(
        "name", ["extra.txt", "oracle/extra.npz", "oracle/manifest.json", "oracle/manifest.sha256"]
    )
    def test_by_added_files_is_noticed(self, saved: Path, name: str) -> None:
        (saved / name).write_text("{}")
        with pytest.raises(GenerationError, match=f"altered after it was saved: {name}"):
            Generation.load(saved)

    def test_by_links_is_noticed(self, saved: Path) -> None:
        (saved / "link").symlink_to(saved / "nowhere")
        with pytest.raises(GenerationError, match="link"):
            Generation.load(saved)

    def test_by_replacing_a_file_with_a_link_is_noticed(self, saved: Path) -> None:
        weights = saved / "oracle" / "weights.npz"
        moved = saved.parent / "weights.npz"
        weights.rename(moved)
        weights.symlink_to(moved)
        with pytest.raises(GenerationError, match=r"weights\.npz"):
            Generation.load(saved)

    def test_of_the_whole_directory_is_noticed(self, tmp_path: Path) -> None:
        with pytest.raises(GenerationError, match="can't be read"):
            Generation.load(tmp_path / "nowhere")
        (tmp_path / "file").write_text("")
        with pytest.raises(GenerationError, match="can't be read"):
            Generation.load(tmp_path / "file")

    @pytest.mark.parametrize(
        "manifest",
        [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format_version": "1"}', b"null"],
        ids=lambda manifest: ascii(manifest[:30]),
    )
    def test_that_leaves_no_manifest_is_noticed(self, saved: Path, manifest: bytes) -> None:
        (saved / "manifest.json").write_bytes(manifest)
        with pytest.raises(GenerationError, match="can't be read"):
            Generation.load(saved)

    def test_a_later_format_is_refused_by_its_number(self, saved: Path) -> None:
        (saved / "manifest.json").write_text('{"format_version": 4, "new": {}}')
        (saved / "manifest.sha256").unlink()
        with pytest.raises(GenerationError, match=r"has format 4; .* reads up to 3"):
            Generation.load(saved)
        (saved / "manifest.json").write_text('{"format_version": 0}')
        with pytest.raises(GenerationError, match="has format 0"):
            Generation.load(saved)


# Every save is a process of its own that kills itself at its n-th operation on a file, counted by
# Python's audit hooks; the last one is not killed.
CRASHING = """
import os, signal, sys
from pathlib import Path
from tests.policy.test_generation import make_generation

generation, root = make_generation(), Path(sys.argv[1])
for crash_at in range(1, 1000):
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            global seen
            if event.partition(".")[0] in {"open", "os", "tempfile", "shutil"}:
                seen += 1
                if seen == crash_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        generation.save(root / str(crash_at))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(crash_at, os.WEXITSTATUS(status))
        break
"""


def test_kill_9_at_any_moment_of_a_save_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    survivor, status = done.stdout.split()
    assert status == "0"
    # Some ten files and directories are opened, listed and renamed.
    assert int(survivor) > 10
    complete = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert complete == [survivor]
    context, actions = random_request(np.random.default_rng(0))
    loaded, _ = Generation.load(tmp_path / survivor).pmf(context, actions)
    expected, _ = make_generation().pmf(context, actions)
    np.testing.assert_array_equal(loaded, expected)
    # What a killed save leaves behind is hidden, and in the way of none that comes after it.
    make_generation().save(tmp_path / "1")


def test_provenance_round_trips() -> None:
    assert msgspec.json.decode(msgspec.json.encode(PROVENANCE), type=Provenance) == PROVENANCE


def test_registered_model_name() -> None:
    assert registered_model_name("news") == "croupier-news"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
