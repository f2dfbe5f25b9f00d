"""A registered generation as a model of MLflow's: loaded, and really served over HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import urllib3

from croupier.offline.registry import Registry
from croupier.offline.report import report_on
from croupier.offline.retrain import retrain
from croupier.offline.served import ServedGeneration
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import SquareCB
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import VowpalWabbitConfig
from croupier.policy.traffic import Plan
from croupier.service.scorer import Scorer
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import random_world
from tests.processes import free_port

if TYPE_CHECKING:
    from croupier.offline.lake import Lake

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*noload:sqlalchemy.exc.SADeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*Any type hint is inferred as AnyType:UserWarning",
)

ROOT = Path(__file__).parents[2]
WORLD = random_world(3, 4, seed=1)
CONFIG = LoopConfig(exploration=SquareCB(), oracle=VowpalWabbitConfig())


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    from croupier.offline.lake import Lake  # noqa: PLC0415 - slow to import

    lake = Lake(tmp_path_factory.mktemp("lake"))
    lake.append("interactions", WORLD.log(cold_start("shop"), 1600, seed=1))
    return lake


@pytest.fixture(scope="module")
def generation(lake: Lake) -> Generation:
    return retrain(
        lake, "shop", CONFIG, number=4, parent=0, judge_share=0.3, seed=0, created_us=EPOCH_US
    )


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, lake: Lake, generation: Generation
) -> Registry:
    data_dir = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{data_dir / 'mlflow.db'}", data_dir / "mlartifacts")
    report = report_on(lake, generation, CONFIG, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        registry.publish(generation, params={}, metrics=report.metrics, figures=report.figures)
        registry.promote("shop", 4)
    return registry


def frame(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd  # type: ignore[import-untyped]  # noqa: PLC0415

    return pd.DataFrame(rows)


def asked() -> list[dict[str, Any]]:
    """Requests as columns of text."""
    rows = []
    for context in range(3):
        request = WORLD.request(context)
        rows.append(
            {
                "context": msgspec.json.encode(request.context).decode(),
                "actions": msgspec.json.encode(request.actions).decode(),
                "excluded": '["a1"]' if context == 2 else None,
                "baseline": "a2" if context == 1 else None,
            }
        )
    return rows


def scorer_pmfs(generation: Generation) -> list[list[float]]:
    """What the scorer answers to the same requests."""
    scorer = Scorer({"shop": CONFIG}, clock=lambda: EPOCH_US)
    scorer.swap(Plan(generation))
    pmfs = []
    for context, row in enumerate(asked()):
        request = WORLD.request(context, decision_id=f"d{context}")
        excluded = msgspec.json.decode(row["excluded"] or "[]")
        request = msgspec.structs.replace(request, excluded=excluded, baseline=row["baseline"])
        pmfs.append(scorer.decide("shop", request).pmf)
    return pmfs


def test_the_run_has_measures_and_figures(registry: Registry) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    version = client.get_model_version_by_alias("croupier-shop", "champion")
    assert version.run_id is not None
    metrics = client.get_run(version.run_id).data.metrics
    measured = {"rows", "mse", "ece", "log_loss", "auc"}
    assert measured == {
        name.removeprefix("heldout_") for name in metrics if name.startswith("heldout_")
    }
    assert 50 < metrics["heldout_rows"] < 120
    assert metrics["weight_max"] == pytest.approx(4.0)
    assert metrics["weight_effective_share"] == pytest.approx(1.0)
    figures = {each.path for each in client.list_artifacts(version.run_id, "figures")}
    assert figures == {
        f"figures/{name}.png" for name in ("calibration", "reward_by_action", "weights")
    }
    aliases = client.get_registered_model("croupier-shop").aliases
    assert aliases == {"champion": version.version, "challenger": version.version}


def test_a_loaded_model_says_what_the_scorer_says(
    registry: Registry, generation: Generation
) -> None:
    import mlflow  # noqa: PLC0415

    mlflow.set_tracking_uri(registry.tracking_uri)
    mlflow.set_registry_uri(registry.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/croupier-shop@champion")
    columns = model.metadata.get_input_schema().input_names()
    assert columns == ["context", "actions", "excluded", "baseline"]
    answers = model.predict(frame(asked()))
    assert answers["pmf"].tolist() == scorer_pmfs(generation)
    assert (
        model.predict(frame(asked())[["context", "actions"]])["pmf"].tolist()[0]
        == (scorer_pmfs(generation)[0])
    )


def test_requests_that_can_not_be_are_refused(generation: Generation) -> None:
    model = ServedGeneration(generation)
    (row,) = asked()[:1]
    for change, field in (
        ({"excluded": '["unknown"]'}, "excluded"),
        ({"actions": "[]"}, "actions"),
        ({"baseline": "unknown"}, "baseline"),
    ):
        with pytest.raises(InvalidInputError, match=field):
            model.predict(frame([row | change]))


def test_a_cold_start_has_no_scores() -> None:
    answers = ServedGeneration(cold_start("shop")).predict(frame(asked()[:1]))
    assert answers["pmf"].tolist() == [[0.25] * 4]
    assert answers["scores"].tolist() == [None]


@pytest.mark.slow
def test_mlflow_models_serve(registry: Registry, generation: Generation, tmp_path: Path) -> None:
    """MLflow's own server, in a process of its own, from the registered model by its alias."""
    port = free_port()
    mlflow = shutil.which("mlflow") or str(Path(sys.executable).parent / "mlflow")
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(mlflow, "models", "serve", "--model-uri", "models:/croupier-shop@champion"),
                *("--env-manager", "local", "--port", str(port)),
            ],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": registry.tracking_uri,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "PYTHONPATH": str(ROOT),
                "PATH": f"{Path(mlflow).parent}:{os.environ['PATH']}",
            },
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            answers = _ask(process, f"http://127.0.0.1:{port}")
        finally:
            # The command starts a server of its own, which outlives it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
    served = [answer["pmf"] for answer in answers]
    np.testing.assert_array_equal(served, scorer_pmfs(generation))


def _ask(process: subprocess.Popen[bytes], url: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib3.request("GET", f"{url}/ping", timeout=5.0, retries=False)
        except urllib3.exceptions.HTTPError:
            time.sleep(0.5)
            continue
        response = urllib3.request(
            "POST", f"{url}/invocations", json={"dataframe_records": asked()}, timeout=60.0
        )
        assert response.status == 200, response.data
        answers: list[dict[str, Any]] = response.json()["predictions"]
        return answers
    raise AssertionError(f"the server didn't start (exit code {process.poll()})")
