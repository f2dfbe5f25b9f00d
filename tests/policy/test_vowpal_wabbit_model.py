"""Parity with Vowpal Wabbit under the user's own arguments, and which of these are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import vowpal_wabbit_next as vw

from croupier.policy.encoding import EncoderConfig, FeatureEncoder
from croupier.policy.errors import GenerationError, InvalidInputError, NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.oracle import (
    TrainingRow,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    VowpalWabbitModelOracle,
    VowpalWabbitOracle,
    load_oracle,
)
from tests.policy.training import random_request, random_rows, vw_examples, vw_rewards

if TYPE_CHECKING:
    from croupier.policy.events import Features

ENCODER = EncoderConfig(bits=14)

# Every argument that is allowed is in one of these.
ARGUMENTS = [
    "",
    "-q ca",
    "-qca",
    "--quadratic=::",
    "--cubic cca --power_t 0.4",
    "--interactions cca --interactions ca",
    "--ignore_linear a -q ca",
    "--nn 5 -q ca",
    "--nn 4 --inpass",
    "--nn 3 --multitask --initial_t 2",
    "--lrq ca3",
    "--lrq ca2 --lrqdropout",
    "--lrqfa ca3",
    "--new_mf 2 -q ca",
    "--stage_poly --sched_exponent 0.5 --batch_sz 20 --batch_sz_no_doubling",
    "--boosting 3 --gamma 0.2 --alg BBM",
    "--boosting 2 --alg logistic",
    "--bootstrap 3 --bs_type mean",
    "--bootstrap 3 --bs_type vote -q ca",
    "--clip_p 0.2 -q ca",
    "--cb_dro --cb_dro_alpha 0.1 --cb_dro_tau 0.9 --cb_dro_wmax 10",
    "--loss_function quantile --quantile_tau 0.7",
    "--ftrl --ftrl_alpha 0.05 --ftrl_beta 0.5",
    "--coin -q ca",
    "--pistol",
    "--freegrad -q ca",
    "--sgd --power_t 0.5",
    "--adaptive --normalized --invariant",
    "--initial_weight 0.01",
    "--random_weights",
    "--min_prediction -1 --max_prediction 0 -q ca",
]


def config(arguments: str, **settings: Any) -> VowpalWabbitModelConfig:
    return VowpalWabbitModelConfig(arguments=arguments, **({"encoder": ENCODER} | settings))


def trained_workspace(config: VowpalWabbitModelConfig, rows: list[TrainingRow]) -> Any:
    """The same learner, driven by hand from the command line."""
    # Doubly robust learning keeps two weights per feature in the same table.
    bits = config.encoder.bits + (config.cb_type == "dr")
    arguments = (
        f"--quiet --cb_adf --cb_type {config.cb_type} --noconstant -b {bits} "
        f"--learning_rate {config.learning_rate} {config.arguments}"
    )
    workspace: Any = vw.Workspace(arguments.split())
    encoder = FeatureEncoder(config.encoder)
    for _ in range(config.passes):
        for row in rows:
            workspace.learn_one(vw_examples(encoder.encode(row.context, row.actions), row))
    return workspace


def odd_requests(n: int, seed: int = 1) -> list[tuple[Features, list[Action]]]:
    """Of 1 to 9 actions, with features that were never seen, and without any."""
    rng = np.random.default_rng(seed)
    requests: list[tuple[Features, list[Action]]] = []
    for position in range(n):
        context, actions = random_request(rng, n_actions=int(rng.integers(1, 9)))
        if position % 3 == 1:
            context["unseen"] = float(rng.normal())
            actions.append(Action("unseen", {"x": 3.0, "color": "none of these"}))
        requests.append(({} if position % 7 == 2 else context, actions))
    return requests


class TestParity:
    @pytest.mark.parametrize("arguments", ARGUMENTS)
    def test_scores_what_vowpal_wabbit_predicts(self, arguments: str) -> None:
        asked = config(arguments)
        rows = random_rows(150)
        oracle = VowpalWabbitModelOracle(asked).fit(rows)
        workspace = trained_workspace(asked, rows)
        encoder = FeatureEncoder(ENCODER)
        for request in odd_requests(60):
            expected = vw_rewards(workspace, encoder.encode(*request))
            np.testing.assert_allclose(oracle.score(*request), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        "settings",
        [
            {"passes": 3},
            {"cb_type": "ips"},
            {"cb_type": "dr"},
            {"cb_type": "dr", "arguments": "--bootstrap 3"},
            {"learning_rate": 2.0},
            {"encoder": {"bits": 10}},
        ],
        ids=str,
    )
    def test_under_its_settings(self, settings: dict[str, Any]) -> None:
        table = {"kind": "vowpal_wabbit_model", "arguments": "--nn 3 -q ca", **settings}
        asked = msgspec.convert(table, VowpalWabbitModelConfig)
        rows = random_rows(150)
        oracle = VowpalWabbitModelOracle(asked).fit(rows)
        workspace = trained_workspace(asked, rows)
        encoder = FeatureEncoder(asked.encoder)
        for request in odd_requests(30):
            expected = vw_rewards(workspace, encoder.encode(*request))
            np.testing.assert_allclose(oracle.score(*request), expected, rtol=1e-6, atol=1e-6)

    def test_of_features_that_share_the_weights_of_a_networks_biases(self) -> None:
        """These are where no hash puts them, and elsewhere in a model that was read to predict."""
        encoder = FeatureEncoder(EncoderConfig(bits=18))
        names = [f"n{number}" for number in range(300_000)]
        # The constant comes first. A feature has 8 places, 5 of them for the hidden units.
        indices = encoder.encode_context(dict.fromkeys(names, 1.0)).indices[1:]
        places = (8 * indices) & encoder.mask
        # In the order of the encoder: by name.
        ordered = np.array(sorted(names))
        constant = 11650396
        biases = constant % (1 << 18), (constant % (1 << 20)) // 4
        sharing = [
            str(ordered[np.flatnonzero(places == place)[0]])
            for place in (8 * -(-bias // 8) for bias in biases)
        ]
        asked = config("--nn 5", encoder=encoder.config)
        rows = random_rows(100)
        oracle = VowpalWabbitModelOracle(asked).fit(rows)
        workspace = trained_workspace(asked, rows)
        for name in sharing:
            request: Features = {name: 1.0, "user": {"age": 0.5}}
            actions = [Action("a0", {"x": 1.0}), Action("a1")]
            expected = vw_rewards(workspace, encoder.encode(request, actions))
            np.testing.assert_allclose(oracle.score(request, actions), expected, rtol=1e-6)

    def test_with_products_alone_it_is_the_linear_oracle(self) -> None:
        """One model, scored by Vowpal Wabbit and from the table of its weights."""
        rows = random_rows(300)
        table = VowpalWabbitOracle(VowpalWabbitConfig(encoder=ENCODER)).fit(rows)
        model = VowpalWabbitModelOracle(config("-q ca")).fit(rows)
        for request in odd_requests(60):
            np.testing.assert_allclose(
                model.score(*request), table.score(*request), rtol=1e-6, atol=1e-6
            )

    def test_the_seed_reaches_the_learner(self) -> None:
        rows, request = random_rows(50), random_request(np.random.default_rng(0))
        scores = {
            VowpalWabbitModelOracle(config("--nn 3"), random_state=seed)
            .fit(rows)
            .score(*request)[0]
            for seed in (1, 1, 2)
        }
        assert len(scores) == 2

    def test_a_network_learns_what_no_plane_can(self) -> None:
        """The reward is high where x is far from 0."""

        def reward(_: Features, action: Action) -> float:
            return float(abs(action.features["x"]) > 0.7)

        rows, fresh = random_rows(3000, reward=reward), random_rows(200, seed=1, reward=reward)
        correlations = []
        for arguments in ("-q ca", "--nn 10"):
            asked = config(arguments, passes=20, learning_rate=1.0)
            oracle = VowpalWabbitModelOracle(asked).fit(rows)
            scores = [oracle.score(row.context, row.actions)[row.chosen] for row in fresh]
            planted = [row.reward for row in fresh]
            correlations.append(float(np.corrcoef(scores, planted)[0, 1]))
        assert correlations[0] < 0.3
        assert correlations[1] > 0.6


class TestServing:
    def test_requests_of_all_sizes_leave_nothing_behind(self) -> None:
        """Examples are used again: a large decision must not show in the small one after it."""
        oracle = VowpalWabbitModelOracle(config("--nn 3 -q ca")).fit(random_rows(100))
        requests = odd_requests(30)
        large = random_request(np.random.default_rng(5), n_actions=600)
        expected = [oracle.score(*request).tobytes() for request in requests]
        for request, bits in zip(requests, expected, strict=True):
            assert len(oracle.score(*large)) == 600
            assert oracle.score(*request).tobytes() == bits

    def test_threads_get_what_one_gets(self) -> None:
        oracle = VowpalWabbitModelOracle(config("--nn 3 -q ca")).fit(random_rows(100))
        requests = odd_requests(500)
        expected = [oracle.score(*request).tobytes() for request in requests]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                scored = pool.map(lambda request: oracle.score(*request).tobytes(), requests)
                assert list(scored) == expected

    def test_actions_without_features(self) -> None:
        encoder = EncoderConfig(bits=12, action_id=False)
        actions = [Action("a"), Action("b", {"x": 1.0}), Action("c")]
        row = TrainingRow(context={}, actions=actions, chosen=1, propensity=0.5, reward=1.0)
        scores = VowpalWabbitModelOracle(config("--nn 2", encoder=encoder)).fit([row] * 30)
        first, second, third = scores.score({}, actions)
        assert first == third != second

    def test_predictions_take_no_memory(self, tmp_path: Path) -> None:
        """200,000 of them after as many as it takes to warm up, in a process of its own."""
        oracle = VowpalWabbitModelOracle(config("--nn 3 -q ca")).fit(random_rows(100))
        oracle.save(tmp_path)
        measured = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        )
        warm, after = map(int, measured.stdout.split())
        assert after - warm < 2 << 20


MEMORY = """
import pathlib, sys
import numpy as np
from croupier.policy.oracle import load_oracle
from tests.policy.training import random_request

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

oracle = load_oracle(pathlib.Path(sys.argv[1]))
rng = np.random.default_rng(0)
requests = [random_request(rng, n_actions=1 + i % 9) for i in range(200)]
decisions = [oracle._encoder.encode(*request) for request in requests]
for _ in range(50):
    for decision in decisions:
        oracle.score_encoded(decision)
warm = resident()
for _ in range(1000):
    for decision in decisions:
        oracle.score_encoded(decision)
print(warm, resident())
"""


def options_of_vowpal_wabbit() -> set[str]:
    """Every option that the installed Vowpal Wabbit has, long and short."""
    listed = subprocess.run(
        [sys.executable, "-c", "import vowpal_wabbit_next as vw; vw.run_cli_driver(['--help'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    named = re.findall(r"^ {4}(?:(-\w), )?--(\S+)", listed, re.MULTILINE)
    return {option for short, long in named for option in (short, f"--{long}") if option}


class TestArguments:
    def test_every_other_option_of_vowpal_wabbit_is_refused(self) -> None:
        """Whatever it can do with files, the network, its output and its predictions."""
        options = options_of_vowpal_wabbit()
        assert {"-f", "--final_regressor", "--daemon", "--cb_explore_adf", "-q"} <= options
        allowed = {
            "-q" if word == "-qca" else word.partition("=")[0]
            for arguments in ARGUMENTS
            for word in arguments.split()
            if word.startswith(("--", "-q"))
        }
        assert len(options - allowed) > 300
        for option in sorted(options - allowed):
            for written in (option, f"{option} 1", f"{option}=1", f"--nn 3 {option}"):
                with pytest.raises(ValueError, match=rf"(?s)got '{re.escape(option)}"):
                    config(written)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("-f /tmp/model", "got '-f'"),
            ("-f/tmp/model", "got '-f/tmp/model'"),
            ("--final_regressor=/tmp/model", "got '--final_regressor=/tmp/model'"),
            ("--nn 5 /etc/passwd", "got '/etc/passwd'"),
            ("--initial_regressor x", "got '--initial_regressor'"),
            ("--daemon", "got '--daemon'"),
            ("--sendto example.org", "got '--sendto'"),
            ("--cb_explore_adf", "got '--cb_explore_adf'"),
            ("--nn 5 --dropout", "got '--dropout'"),
            ("--ksvm", "got '--ksvm'"),
            ("--n 5", "got '--n'"),
            ("-nn 5", "got '-nn'"),
            ("nn 5", "got 'nn'"),
            ("--nn 'five", "arguments must be a command line"),
            ("--nn", r"--nn must be a whole number in \[1, 1000\], got ''"),
            ("--nn five", r"--nn must be a whole number in \[1, 1000\], got 'five'"),
            ("--nn 0", "--nn must be a whole number"),
            ("--nn -3", "--nn must be a whole number"),
            ("--nn 1001", "--nn must be a whole number"),
            ("--boosting 0", "--boosting must be a whole number"),
            ("--nn --inpass", "--nn must be a whole number.*got '--inpass'"),
            ("-q xy", "--quadratic must be two of the namespaces c, a and :, got 'xy'"),
            ("-q", "--quadratic must be two of the namespaces"),
            ("-q ca cc", "got 'cc'"),
            ("--cubic ca", "--cubic must be three of the namespaces"),
            ("--interactions c", "--interactions must be 2 to 8 of the namespaces"),
            ("--lrq ca", "--lrq must be two of the namespaces c and a, and a rank"),
            ("--clip_p nan", "--clip_p must be a finite number, got 'nan'"),
            ("--clip_p much", "--clip_p must be a finite number, got 'much'"),
            ("--inpass=1", "--inpass takes no value, got '1'"),
            ("--alg adaptive", "--alg must be BBM or logistic, got 'adaptive'"),
        ],
    )
    def test_are_refused_by_name(self, arguments: str, message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message) as refused:
            msgspec.convert(
                {"kind": "vowpal_wabbit_model", "arguments": arguments}, VowpalWabbitModelConfig
            )
        assert str(refused.value).startswith("arguments")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--cb_dro --cb_dro_wmax 0.3", "refuses.*cb_dro_wmax must exceed 1"),
            ("--ftrl --coin", "refuses"),
        ],
    )
    def test_that_make_no_sense_together(self, arguments: str, message: str) -> None:
        with pytest.raises(GenerationError, match=f"oracle.arguments.*{message}"):
            VowpalWabbitModelOracle(config(arguments)).fit(random_rows(30))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"arguments": 5}, "arguments"),
            ({"cb_type": "dm"}, "cb_type"),
            ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
            ({"passes": 0}, r"passes must be in \[1, 1000\], got 0"),
            ({"encoder": {"bits": 30}}, r"bits must be in \[10, 26\], got 30"),
            ({"l2": 1.0}, "l2"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"kind": "vowpal_wabbit_model", **table}, VowpalWabbitModelConfig)


class TestRefusal:
    def test_of_a_model_that_diverged(self) -> None:
        with pytest.raises(GenerationError, match="not finite"):
            VowpalWabbitModelOracle(config("--pistol", cb_type="dr")).fit(random_rows(150))

    def test_of_no_rows_and_of_rows_that_cannot_be(self) -> None:
        oracle = VowpalWabbitModelOracle(config("--nn 3"))
        with pytest.raises(NotEnoughDataError):
            oracle.fit([])
        with pytest.raises(InvalidInputError, match=r"rows\[0\]\.reward"):
            oracle.fit([msgspec.structs.replace(row, reward=np.nan) for row in random_rows(3)])

    def test_before_it_is_fitted(self) -> None:
        with pytest.raises(GenerationError, match="not fitted"):
            VowpalWabbitModelOracle(config("--nn 3")).score({}, [Action("a")])

    def test_of_a_model_is_all_that_is_left_of_the_learner(self, tmp_path: Path) -> None:
        """The oracle that was fitted and the one that was loaded are scored alike."""
        oracle = VowpalWabbitModelOracle(config("--bootstrap 4 -q ca")).fit(random_rows(100))
        oracle.save(tmp_path)
        loaded = load_oracle(tmp_path)
        for request in odd_requests(40):
            assert loaded.score(*request).tobytes() == oracle.score(*request).tobytes()
