"""What oracles write: read back bit for bit, the same bytes every time, and damage is noticed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import GenerationError
from croupier.policy.exploration import Bagging, Cover, Exploration, RegCB, SquareCB, Thompson
from croupier.policy.generation import Generation, Provenance
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    CoverConfig,
    DistilledConfig,
    EncodedOracle,
    OracleConfig,
    RidgeConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    TableOracle,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    load_oracle,
    make_oracle,
)
from tests.policy.training import random_request, random_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.estimates import Estimates

CONFIGS: list[OracleConfig] = [
    VowpalWabbitConfig(cb_type="mtr"),
    VowpalWabbitConfig(cb_type="ips", l2=1e-3),
    VowpalWabbitConfig(cb_type="dr"),
    SklearnConfig(),
    SklearnConfig(estimator="sklearn.linear_model.SGDRegressor", encoder=EncoderConfig(bits=12)),
    SklearnConfig(estimator="sklearn.linear_model.LogisticRegression"),
    RidgeConfig(l2=0.5),
    AutoConfig(l2=0.5),
    AutoConfig(max_columns=10, beyond=VowpalWabbitConfig(cb_type="dr")),
    BootstrapConfig(members=3, base=VowpalWabbitConfig(cb_type="dr")),
    BootstrapConfig(
        members=3, base=SklearnConfig(estimator="sklearn.linear_model.LogisticRegression")
    ),
    CoverConfig(members=3, epsilon=0.1),
    SklearnOnnxConfig(params={"max_iter": 5}),
    SklearnOnnxConfig(
        estimator="sklearn.ensemble.RandomForestClassifier",
        params={"n_estimators": 5},
        max_columns=12,
        products=True,
        encoder=EncoderConfig(bits=12),
    ),
    VowpalWabbitModelConfig(arguments="--nn 3 -q ca"),
    VowpalWabbitModelConfig(arguments="--bootstrap 3", cb_type="dr", passes=2),
    DistilledConfig(base=SklearnOnnxConfig(params={"max_iter": 5})),
    DistilledConfig(base=VowpalWabbitModelConfig(arguments="--nn 3")),
]

UNCERTAINTIES = frozenset({"deviation", "covariance", "members"})

configs = pytest.mark.parametrize(
    "config", CONFIGS, ids=[f"{type(each).__name__}{i}" for i, each in enumerate(CONFIGS)]
)


def fitted(config: OracleConfig, random_state: int = 3) -> EncodedOracle:
    rows = random_rows(80, reward=lambda _, action: float(action.features["x"] > 0))
    return make_oracle(config, random_state=random_state).fit(rows)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@configs
def test_loaded_scores_are_the_saved_ones_bit_for_bit(tmp_path: Path, config: OracleConfig) -> None:
    saved, again = tmp_path / "saved", tmp_path / "again"
    saved.mkdir()
    again.mkdir()
    oracle = fitted(config)
    oracle.save(saved)
    loaded = load_oracle(saved, to_learn=True)
    assert type(loaded) is type(oracle)
    assert loaded.config == config
    assert loaded.random_state == oracle.random_state
    loaded.save(again)
    assert contents(again) == contents(saved)
    rng = np.random.default_rng(0)
    for _ in range(20):
        request = random_request(rng)
        assert loaded.score(*request).tobytes() == oracle.score(*request).tobytes()
        assert_same_bits(
            loaded.estimate(*request, UNCERTAINTIES), oracle.estimate(*request, UNCERTAINTIES)
        )


def assert_same_bits(left: Estimates, right: Estimates) -> None:
    for field in ("mean", "deviation", "covariance", "members"):
        ours, theirs = getattr(left, field), getattr(right, field)
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.tobytes() == theirs.tobytes()


@given(
    config=st.one_of(
        st.builds(
            RidgeConfig,
            l2=st.floats(1e-3, 1e3),
            encoder=st.builds(EncoderConfig, bits=st.integers(10, 12)),
        ),
        st.builds(
            AutoConfig,
            max_columns=st.sampled_from([1, 60, 1000]),
            encoder=st.builds(EncoderConfig, bits=st.integers(10, 12)),
        ),
        st.builds(
            BootstrapConfig,
            members=st.integers(2, 4),
            base=st.builds(
                VowpalWabbitConfig,
                cb_type=st.sampled_from(["mtr", "ips", "dr"]),
                encoder=st.builds(EncoderConfig, bits=st.integers(10, 12)),
            ),
        ),
        st.builds(
            CoverConfig,
            members=st.integers(1, 4),
            psi=st.floats(0.0, 10.0),
            encoder=st.builds(EncoderConfig, bits=st.integers(10, 12)),
        ),
    ),
    seed=st.integers(0, 2**32 - 1),
    taught=st.integers(0, 6),
    explorations=st.integers(0, 1),
)
@settings(deadline=None, max_examples=40)
def test_a_saved_generation_plays_the_same_pmf_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    config: RidgeConfig | AutoConfig | BootstrapConfig | CoverConfig,
    seed: int,
    taught: int,
    explorations: int,
) -> None:
    """Whatever was taught after the fit is in the file too."""
    suited: dict[type[OracleConfig], tuple[Exploration, Exploration]] = {
        RidgeConfig: (Thompson(samples=100), RegCB()),
        AutoConfig: (SquareCB(gamma_scale=100.0, optimism=0.01), SquareCB()),
        BootstrapConfig: (Bagging(), Thompson(correlated=False)),
        CoverConfig: (Cover(), Bagging()),
    }
    rows = random_rows(20 + taught, seed=seed)
    oracle = make_oracle(config, random_state=seed).fit(rows[:20]).partial_fit(rows[20:])
    exploration = suited[type(config)][explorations]
    origin = Provenance(
        parent=0,
        lake_version=0,
        code_version="0",
        loop_config="",
        seed=seed,
        training_rows=len(rows),
        created_us=0,
    )
    generation = Generation("shop", 1, exploration, oracle, origin)
    directory = tmp_path_factory.mktemp("generation") / "1"
    generation.save(directory)
    loaded = Generation.load(directory)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        request = random_request(rng)
        (ours, our_scores), (theirs, their_scores) = generation.pmf(*request), loaded.pmf(*request)
        assert our_scores is not None
        assert their_scores is not None
        assert ours.tobytes() == theirs.tobytes()
        assert our_scores.tobytes() == their_scores.tobytes()


@configs
def test_the_same_rows_and_seed_give_the_same_bytes(tmp_path: Path, config: OracleConfig) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        fitted(config).save(tmp_path / name)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_an_oracle_that_was_not_fitted_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="not fitted"):
        make_oracle(SklearnConfig()).save(tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["weights.npz", "oracle.json"])
def test_missing_and_empty_files_are_noticed(tmp_path: Path, name: str) -> None:
    fitted(SklearnConfig()).save(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(GenerationError, match="can't be read"):
        load_oracle(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(GenerationError, match="can't be read"):
        load_oracle(tmp_path)


SMALL: dict[str, OracleConfig] = {
    "sklearn": SklearnConfig(encoder=EncoderConfig(bits=10)),
    "ridge": RidgeConfig(encoder=EncoderConfig(bits=10)),
    "auto": AutoConfig(encoder=EncoderConfig(bits=10)),
    "bootstrap": BootstrapConfig(members=3, base=SklearnConfig(encoder=EncoderConfig(bits=10))),
    "cover": CoverConfig(members=3, encoder=EncoderConfig(bits=10)),
}


@pytest.mark.parametrize("name", ["weights.npz", "oracle.json"])
@pytest.mark.parametrize("kind", SMALL)
def test_damage_ends_in_a_generation_error_or_in_nothing(
    tmp_path: Path, kind: str, name: str
) -> None:
    """Bytes flipped, cut off and made up at 400 random places; nothing else may be raised."""
    fitted(SMALL[kind]).save(tmp_path)
    path = tmp_path / name
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(400):
        damaged = bytearray(intact)
        at = int(rng.integers(len(damaged)))
        if attempt % 4 == 0:
            del damaged[at:]
        elif attempt % 4 == 1:
            damaged[at : at + 8] = rng.bytes(8)
        else:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_oracle(tmp_path)
        except GenerationError:
            refused += 1
    # A checksum guards the weights; what else passes is caught by the generation's own digests.
    assert refused > 200


MODELS: dict[str, OracleConfig] = {
    "model.onnx": SklearnOnnxConfig(params={"max_iter": 3}),
    "model.vw": VowpalWabbitModelConfig(arguments="--nn 2"),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_damaged_model_reaches_the_library_that_reads_it(tmp_path: Path, name: str) -> None:
    """Some would end the process: neither ONNX Runtime nor Vowpal Wabbit expects damage."""
    fitted(MODELS[name]).save(tmp_path)
    intact = contents(tmp_path)
    assert set(intact) == {name, f"{name}.sha256", "oracle.json"}
    rng = np.random.default_rng(0)
    for part in (name, f"{name}.sha256"):
        for attempt in range(100):
            damaged = bytearray(intact[part])
            at = int(rng.integers(len(damaged)))
            if attempt % 4 == 0:
                del damaged[at:]
            else:
                damaged[at] ^= 1 << int(rng.integers(8))
            (tmp_path / part).write_bytes(damaged)
            with pytest.raises(GenerationError, match=r"altered|can't be read"):
                load_oracle(tmp_path)
        (tmp_path / part).write_bytes(intact[part])
    load_oracle(tmp_path)


MEMORY = """
import pathlib, sys
from croupier.policy.events import Action
from croupier.policy.oracle import load_oracle

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

def read(times):
    for _ in range(times):
        load_oracle(pathlib.Path(sys.argv[1])).score({"x": 1.0}, [Action("a"), Action("b")])
    return resident()

print(read(30), read(100))
"""


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_let_go_take_no_memory(tmp_path: Path, name: str) -> None:
    """A scorer reads a new one every night; 100 of them after a warm-up, in a process alone."""
    fitted(MODELS[name]).save(tmp_path)
    measured = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], check=True, capture_output=True, text=True
    )
    warm, after = map(int, measured.stdout.split())
    # One table of Vowpal Wabbit's is 4 MiB.
    assert after - warm < 4 << 20


@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_is_no_model_is_noticed(tmp_path: Path, name: str) -> None:
    fitted(MODELS[name]).save(tmp_path)
    for junk in (b"", b"junk", bytes(range(256))):
        (tmp_path / name).write_bytes(junk)
        (tmp_path / f"{name}.sha256").write_text(hashlib.sha256(junk).hexdigest())
        with pytest.raises(GenerationError):
            load_oracle(tmp_path)


def test_a_model_of_something_else_is_noticed(tmp_path: Path) -> None:
    """Vowpal Wabbit's models hold their arguments: one that plays isn't one that estimates."""
    import vowpal_wabbit_next as vw  # noqa: PLC0415

    fitted(MODELS["model.vw"]).save(tmp_path)
    for arguments in (["--quiet"], ["--quiet", "--cb_explore_adf"]):
        model = vw.Workspace(arguments).serialize()
        (tmp_path / "model.vw").write_bytes(model)
        (tmp_path / "model.vw.sha256").write_text(hashlib.sha256(model).hexdigest())
        with pytest.raises(GenerationError, match="predicts a cost for every action"):
            load_oracle(tmp_path)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        ([0, 1024], [1.0, 2.0]),
        ([0, 1], [1.0, np.nan]),
        ([0, 1], [1.0, np.inf]),
        ([0, 1], [1.0, 2.0, 3.0]),
        ([0.5, 1.0], [1.0, 2.0]),
        ([0, 1], ["x", "y"]),
    ],
    ids=str,
)
def test_weights_that_make_no_sense_are_noticed(
    tmp_path: Path, index: list[float], value: list[float]
) -> None:
    fitted(SklearnConfig(encoder=EncoderConfig(bits=10))).save(tmp_path)
    np.savez(tmp_path / "weights.npz", index=np.array(index), value=np.array(value))
    with pytest.raises(GenerationError):
        load_oracle(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("value", lambda value: value[:-1]),
        ("value", lambda value: value.astype(str)),
        ("value", lambda value: value * np.nan),
        ("root", lambda root: root[:-1]),
        ("root", lambda root: root[0]),
        ("root", lambda root: root * np.inf),
        ("root", lambda root: root.astype(complex)),
        ("index", lambda index: index + 1024),
        ("index", lambda index: index * 0),
        ("index", lambda index: index * 0.5),
    ],
)
def test_a_posterior_that_makes_no_sense_is_noticed(
    tmp_path: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    oracle = fitted(SMALL["ridge"])
    assert isinstance(oracle, TableOracle)
    oracle.save(tmp_path)
    arrays = dict(oracle.arrays())
    with np.errstate(invalid="ignore"):
        arrays[name] = change(arrays[name])
    np.savez(tmp_path / "weights.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(GenerationError):
        load_oracle(tmp_path)


@pytest.mark.parametrize("kind", ["bootstrap", "cover"])
def test_members_that_are_missing_are_noticed(tmp_path: Path, kind: str) -> None:
    oracle = fitted(SMALL[kind])
    assert isinstance(oracle, TableOracle)
    oracle.save(tmp_path)
    arrays = oracle.arrays()
    for value in (arrays["value"][:, :2], arrays["value"][:, :1], arrays["value"][:, 0]):
        np.savez(tmp_path / "weights.npz", index=arrays["index"], value=value)
        with pytest.raises(GenerationError, match="can't be read"):
            load_oracle(tmp_path)


def test_no_code_is_run_from_a_file(tmp_path: Path) -> None:
    fitted(SklearnConfig(encoder=EncoderConfig(bits=10))).save(tmp_path)
    pickled = np.array([print], dtype=object)
    np.savez(tmp_path / "weights.npz", index=np.array([0]), value=pickled)
    with pytest.raises(GenerationError, match="allow_pickle"):
        load_oracle(tmp_path)


@configs
def test_configurations_round_trip(config: OracleConfig) -> None:
    assert msgspec.json.decode(msgspec.json.encode(config), type=OracleConfig) == config
