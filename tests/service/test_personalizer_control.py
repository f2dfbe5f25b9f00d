"""Personalizer's control plane: recorded requests against a live server, and what comes of them."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from azure.cognitiveservices.personalizer import PersonalizerClient
from azure.cognitiveservices.personalizer.models import RankableAction, RankRequest
from msrest.authentication import CognitiveServicesCredentials

from croupier.cli.main import main
from croupier.offline.lake import Lake
from croupier.policy.events import Decision, MixComponent, Outcome
from tests.service.running import Server, running, unique, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.running import Answer

# Of MLflow's own making.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]

V1 = "/personalizer/v1.0"
PREVIEW = "/personalizer/v1.1-preview.3"
BOSS, APP = "key-of-the-boss", "key-of-the-application"
OTHER = "key-of-the-other-loop"
MAX_CONTROL_BYTES = 400_000
CONFIG = f"""
[service]
port = 0
registry_poll = "50 ms"
max_control_body_bytes = {MAX_CONTROL_BYTES}

[service.keys]
boss = {{ key = "{BOSS}", loops = ["articles"], scopes = ["admin"] }}
app = {{ key = "{APP}", loops = ["articles"] }}
other = {{ key = "{OTHER}", loops = ["other"], scopes = ["admin"] }}

[loops.articles]
exploration = {{ kind = "epsilon_greedy", epsilon = 0.2 }}
reward_min = -1.0

[loops.other]
exploration = {{ kind = "thompson" }}
oracle = {{ kind = "ridge" }}
aggregation = "mean"
uniform_slices = [{{ share = 0.1, start = "02:00", end = "04:00" }}]
log_retention = "90 d"
"""
# As the public reference shows them.
SERVICE: dict[str, Any] = {
    "rewardWaitTime": "PT10M",
    "defaultReward": 0.0,
    "rewardAggregation": "earliest",
    "explorationPercentage": 0.2,
    "modelExportFrequency": "PT5M",
    "logMirrorEnabled": False,
    "logRetentionDays": 7,
    "lastConfigurationEditDate": "2019-01-19T00:00:00Z",
    "learningMode": "Online",
    "isAutoOptimizationEnabled": False,
    "autoOptimizationFrequency": "P7D",
    "autoOptimizationStartDate": "2019-01-19T00:00:00Z",
}
POLICY = {
    "name": "myPersonalizer",
    "arguments": "--cb_explore_adf --epsilon 0.2 --dsjson --cb_type ips -l 0.5 --power_t 0.5",
}
EVALUATION: dict[str, Any] = {
    "enableOfflineExperimentation": True,
    "name": "myFirstEvaluation",
    "startTime": "2018-12-19T00:00:00Z",
    "endTime": "2099-01-19T00:00:00Z",
    "policies": [{"name": "Custom learning settings 1", "arguments": POLICY["arguments"]}],
}
SUMMARY_FIELDS = {
    "timeStamp",
    "ipsEstimatorNumerator",
    "ipsEstimatorDenominator",
    "snipsEstimatorDenominator",
    "aggregateTimeWindow",
    "nonZeroProbability",
    "sumOfSquares",
    "confidenceInterval",
    "averageReward",
}
ACTIONS = ["pasta", "salad", "soup"]
VISITORS = 300
NOT_LISTENING = b"the control plane does not answer, ask again"
TRIES = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(Server(tmp_path_factory.mktemp("control"), CONFIG)) as started:
        yield started


def ask(
    server: Server,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = BOSS,
    again: bool = True,
) -> Answer:
    """Ask the control plane, and again if its process has not yet begun to listen."""
    headers = {} if key is None else {"Ocp-Apim-Subscription-Key": key}
    sent = b""
    if body is not None:
        raw = isinstance(body, bytes)
        sent = body if raw else json.dumps(body).encode()
        headers["Content-Type"] = "application/octet-stream" if raw else "application/json"
    path = path if path.startswith("/") else f"{PREVIEW}/{path}"
    for left in reversed(range(TRIES if again else 1)):
        with server.caller() as caller:
            answer = caller.send(method, path, sent, headers)
        if left == 0 or answer.status != 503 or NOT_LISTENING not in answer.body:
            break
    return answer


def restored(server: Server) -> Any:
    """Put every setting back to what the file says; gives the service configuration."""
    for path in (server.data_dir / "settings").glob("*.json"):
        path.unlink()
    return ask(server, "GET", "configurations/service").json


def refused(answer: Answer, status: int, code: str, target: str | None = None) -> str:
    error = answer.error
    assert (answer.status, error["code"]) == (status, code), answer
    if target is not None:
        assert error["target"] == target
    message: str = error["message"]
    return message


# Settings.


@pytest.mark.parametrize("version", [V1, PREVIEW])
def test_the_configuration_is_told_in_the_references_terms(server: Server, version: str) -> None:
    restored(server)
    answer = ask(server, "GET", f"{version}/configurations/service")
    assert answer.status == 200
    assert answer.json == {
        "rewardWaitTime": "PT10M",
        "defaultReward": 0.0,
        "rewardAggregation": "earliest",
        "explorationPercentage": 0.0,
        "modelExportFrequency": "P1D",
        "logRetentionDays": -1,
        "learningMode": "Online",
        "logMirrorEnabled": False,
        "isAutoOptimizationEnabled": False,
    }


def test_what_is_put_is_got_and_kept_and_goes_over_the_file(server: Server) -> None:
    restored(server)
    before = datetime.now(UTC)
    answer = ask(server, "PUT", "configurations/service", SERVICE)
    assert answer.status == 200
    told = answer.json
    edited = datetime.fromisoformat(told.pop("lastConfigurationEditDate"))
    assert before - timedelta(seconds=1) <= edited <= datetime.now(UTC)
    expected = SERVICE | {"lastConfigurationEditDate": None}
    for name in (
        "lastConfigurationEditDate",
        "autoOptimizationFrequency",
        "autoOptimizationStartDate",
    ):
        del expected[name]
    assert told == expected
    assert ask(server, "GET", f"{V1}/configurations/service").json["logRetentionDays"] == 7
    kept = json.loads((server.data_dir / "settings" / "articles.json").read_bytes())
    # What is as the file has it is not frozen.
    assert set(kept) == {
        "edited_us",
        "by",
        "model_export_frequency",
        "log_retention",
        "uniform_share",
    }
    assert kept["by"] == "boss"
    restored(server)


def test_putting_back_what_was_got_changes_nothing(server: Server) -> None:
    restored(server)
    for key in (BOSS, OTHER):
        got = ask(server, "GET", "configurations/service", key=key).json
        assert ask(server, "PUT", "configurations/service", got, key=key).json == got
        policy = ask(server, "GET", "configurations/policy", key=key).json
        assert ask(server, "PUT", "configurations/policy", policy, key=key).json == policy
    assert list((server.data_dir / "settings").glob("*.json")) == []


def test_what_only_croupier_has_is_told_as_it_is(server: Server) -> None:
    told = ask(server, "GET", "configurations/service", key=OTHER).json
    assert told["rewardAggregation"] == "mean"
    assert told["logRetentionDays"] == 90
    # Uniform by the clock is not always on.
    assert told["explorationPercentage"] == 0.0
    arguments = ask(server, "GET", "configurations/policy", key=OTHER).json["arguments"]
    assert json.loads(arguments)["exploration"]["kind"] == "thompson"


@pytest.mark.parametrize(
    ("change", "code", "target"),
    [
        ({"rewardWaitTime": "10 minutes"}, "InvalidServiceConfiguration", "rewardWaitTime"),
        ({"rewardWaitTime": "P1M"}, "InvalidServiceConfiguration", "rewardWaitTime"),
        ({"rewardWaitTime": "PT0S"}, "InvalidServiceConfiguration", "rewardWaitTime"),
        ({"rewardWaitTime": None}, "InvalidServiceConfiguration", "rewardWaitTime"),
        ({"rewardWaitTime": "P7D"}, "InvalidLogRetentionDays", "logRetentionDays"),
        ({"defaultReward": 1.5}, "InvalidServiceConfiguration", "defaultReward"),
        ({"defaultReward": "much"}, "InvalidServiceConfiguration", "defaultReward"),
        ({"rewardAggregation": "mode"}, "InvalidServiceConfiguration", "rewardAggregation"),
        ({"explorationPercentage": 20}, "InvalidServiceConfiguration", "explorationPercentage"),
        ({"explorationPercentage": -0.1}, "InvalidServiceConfiguration", "explorationPercentage"),
        ({"modelExportFrequency": "P"}, "InvalidServiceConfiguration", "modelExportFrequency"),
        ({"logRetentionDays": 0}, "InvalidServiceConfiguration", "logRetentionDays"),
        ({"logRetentionDays": -2}, "InvalidServiceConfiguration", "logRetentionDays"),
        ({"logRetentionDays": 1}, "InvalidLogRetentionDays", "logRetentionDays"),
        ({"learningMode": "Offline"}, "InvalidServiceConfiguration", "learningMode"),
        ({"logMirrorEnabled": True}, "InvalidServiceConfiguration", "logMirrorEnabled"),
        (
            {"isAutoOptimizationEnabled": True},
            "InvalidServiceConfiguration",
            "isAutoOptimizationEnabled",
        ),
        (
            {"learningMode": "Apprentice", "rewardWaitTime": "PT20M"},
            "InvalidLearningModeServiceConfiguration",
            "learningMode",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(
    server: Server, change: dict[str, Any], code: str, target: str
) -> None:
    restored(server)
    answer = ask(server, "PUT", "configurations/service", SERVICE | change)
    refused(answer, 400, code, target)
    assert list((server.data_dir / "settings").glob("*.json")) == []


def test_a_required_field_is_missed(server: Server) -> None:
    for field in (
        "rewardWaitTime",
        "defaultReward",
        "rewardAggregation",
        "explorationPercentage",
        "modelExportFrequency",
        "logRetentionDays",
    ):
        body = {name: value for name, value in SERVICE.items() if name != field}
        answer = ask(server, "PUT", "configurations/service", body)
        refused(answer, 400, "InvalidServiceConfiguration", field)
    for raw in (b"", b"{", b"[]", b"\xff"):
        answer = ask(server, "PUT", "configurations/service", raw)
        assert answer.status == 400
        assert answer.error["code"] in {"BadRequest", "InvalidServiceConfiguration"}


def ranked(server: Server) -> Decision:
    key = unique()
    body = {"eventId": key, "actions": [{"id": each, "features": []} for each in ACTIONS]}
    assert ask(server, "POST", f"{V1}/rank", body, key=APP).status == 201
    return server.decision(key)


def test_exploration_and_learning_mode_act_at_once_and_propensities_stay_exact(
    server: Server,
) -> None:
    config = restored(server)
    wait_until(lambda: ranked(server).mix == [MixComponent("generation:0", 1.0)])
    put = config | {"explorationPercentage": 0.25, "learningMode": "Apprentice"}
    assert ask(server, "PUT", "configurations/service", put).status == 200
    wait_until(lambda: ranked(server).learning_mode == "apprentice")
    decision = ranked(server)
    assert decision.mix == [MixComponent("baseline", 1.0)]
    assert decision.propensity == 1.0
    put = put | {"learningMode": "Online"}
    assert ask(server, "PUT", "configurations/service", put).status == 200
    wait_until(lambda: ranked(server).learning_mode == "online")
    decision = ranked(server)
    assert decision.mix == [MixComponent("generation:0", 0.75), MixComponent("uniform", 0.25)]
    assert decision.pmf[decision.chosen] == decision.propensity
    assert sum(decision.pmf) == pytest.approx(1.0, abs=1e-9)
    restored(server)
    wait_until(lambda: ranked(server).mix == [MixComponent("generation:0", 1.0)])


def test_a_scorer_starts_whatever_its_settings_hold(tmp_path: Path) -> None:
    server = Server(tmp_path, CONFIG)
    (server.data_dir / "settings").mkdir(parents=True)
    (server.data_dir / "settings" / "articles.json").write_bytes(b"")
    with running(server):
        assert ranked(server).learning_mode == "online"
        assert "articles.json" in server.readiness()["loops"]["articles"]["error"]
        assert run_command(server, "join", code=2) == 2


def test_settings_that_go_with_nothing_any_more_change_nothing_and_are_told(
    server: Server,
) -> None:
    restored(server)
    path = server.data_dir / "settings" / "articles.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{")
    wait_until(lambda: server.readiness()["status"] == "degraded")
    assert "articles.json" in server.readiness()["loops"]["articles"]["error"]
    assert ranked(server).learning_mode == "online"
    answer = ask(server, "GET", "configurations/service")
    refused(answer, 500, "UpdateConfigurationFailed")
    restored(server)
    wait_until(lambda: server.readiness()["loops"]["articles"]["error"] is None)


def test_a_policy_is_put_got_and_reset(server: Server) -> None:
    restored(server)
    configured = ask(server, "GET", "configurations/policy")
    assert configured.status == 200
    # Vowpal Wabbit has no arguments for the oracle that loops have by default.
    told = json.loads(configured.json["arguments"])
    assert told["exploration"]["epsilon"] == 0.2
    assert told["oracle"]["kind"] == "auto"
    again = ask(server, "PUT", "configurations/policy", configured.json)
    assert (again.status, again.json["arguments"]) == (200, configured.json["arguments"])
    assert ask(server, "PUT", f"{V1}/configurations/policy", POLICY).json == POLICY
    assert ask(server, "GET", "configurations/policy").json == POLICY
    kept = json.loads((server.data_dir / "settings" / "articles.json").read_bytes())
    assert kept["oracle"]["cb_type"] == "ips"
    reset = ask(server, "DELETE", "configurations/policy")
    assert (reset.status, reset.json) == (200, configured.json)
    assert ask(server, "GET", "configurations/policy").json == configured.json


@pytest.mark.parametrize(
    ("body", "target", "said"),
    [
        ({"arguments": "--cb_explore_adf --l1 1E-07"}, "arguments", "--l1"),
        ({"arguments": "--first 3"}, "arguments", "--first"),
        ({"arguments": "--epsilon 3"}, "arguments", "epsilon"),
        ({"arguments": "-q ab"}, "arguments", "--quadratic"),
        ({"arguments": ""}, "arguments", "1 to 1024"),
        ({"arguments": "-" * 1025}, "arguments", "1 to 1024"),
        ({"name": ""}, "name", "1 to 256"),
        ({"name": "n" * 257}, "name", "1 to 256"),
        ({"arguments": 3}, "arguments", "str"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_is_refused_by_its_argument(
    server: Server, body: dict[str, Any], target: str, said: str
) -> None:
    answer = ask(server, "PUT", "configurations/policy", POLICY | body)
    assert said in refused(answer, 400, "InvalidPolicyConfiguration", target)


# Who may, and what isn't there.


def test_only_the_admins_of_the_loop_may(server: Server) -> None:
    for method, path in (
        ("GET", "configurations/service"),
        ("PUT", "configurations/policy"),
        ("DELETE", "model"),
        ("DELETE", "logs"),
        ("POST", "evaluations"),
        ("POST", "logs/interactions"),
    ):
        message = refused(ask(server, method, path, key=APP), 403, "InvalidApiAccess", "scopes")
        assert "'admin'" in message
        refused(ask(server, method, path, key=None), 401, "401")
        refused(ask(server, method, path, key=BOSS[:-1]), 401, "401")
    # The admin scope alone is not one to decide with.
    body = {"actions": [{"id": "a", "features": []}]}
    refused(ask(server, "POST", "rank", body), 403, "InvalidApiAccess", "scopes")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "configurations/service", 405, "MethodNotAllowed"),
        ("PATCH", "model", 405, "MethodNotAllowed"),
        ("GET", "logs", 405, "MethodNotAllowed"),
        ("GET", "configurations/applyFromEvaluation", 405, "MethodNotAllowed"),
        ("GET", "configurations", 404, "ResourceNotFound"),
        ("GET", "configurations/Service", 404, "ResourceNotFound"),
        ("GET", "model/", 404, "ResourceNotFound"),
        ("GET", "/personalizer/v1.2/model", 404, "ResourceNotFound"),
        ("GET", f"evaluations/{'0' * 300}", 404, "EvaluationNotFound"),
        ("GET", "evaluations/..%2f..%2fservice", 404, "ResourceNotFound"),
        ("GET", "evaluations/b58c6d92-b727-48c1-9487-4be2782c9e0a", 404, "EvaluationNotFound"),
        ("GET", "model", 404, "ResourceNotFound"),
        ("GET", "evaluations/a/b", 404, "ResourceNotFound"),
    ],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int, code: str) -> None:
    answer = ask(server, method, path, key=OTHER)
    refused(answer, status, code)
    if status == 405 and path != "configurations":
        assert method not in answer.headers["allow"]


def test_an_endpoint_that_ends_in_a_slash(server: Server) -> None:
    assert ask(server, "GET", f"/{V1}/configurations/policy").status == 200


def test_bodies_are_bounded_whether_their_length_is_told_or_not(server: Server) -> None:
    large = b"x" * (MAX_CONTROL_BYTES + 1)
    refused(ask(server, "PUT", "model", large), 413, "PayloadSizeExceeded")
    head = (
        f"PUT {PREVIEW}/model HTTP/1.1\r\nhost: x\r\nocp-apim-subscription-key: {BOSS}\r\n"
        f"transfer-encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode())
        for start in range(0, len(large), 50_000):
            piece = large[start : start + 50_000]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        answer = connection.makefile("rb").readline()
    assert answer.startswith(b"HTTP/1.1 413")
    # A body of more pieces than one arrives whole.
    arrived = ask(server, "PUT", "model", large[: MAX_CONTROL_BYTES - 10])
    refused(arrived, 400, "InvalidModelImportFormat", "body")


def test_uploads_in_hand_hold_up_no_decision(server: Server) -> None:
    head = (
        f"PUT {PREVIEW}/model HTTP/1.1\r\nhost: x\r\nocp-apim-subscription-key: {BOSS}\r\n"
        f"transfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n"
    )
    assert ask(server, "GET", "configurations/service").status == 200
    with ExitStack() as stack:
        for _ in range(4):
            address = ("127.0.0.1", server.port)
            uploading = stack.enter_context(socket.create_connection(address, timeout=20))
            uploading.sendall(head.encode())
        wait_until(lambda: ask(server, "GET", "configurations/service").status == 503)
        answer = ask(server, "GET", "configurations/service")
        refused(answer, 503, "ControlPlaneUnavailable")
        assert answer.headers["retry-after"] == "1"
        started = time.monotonic()
        for _ in range(20):
            ask(server, "POST", f"{V1}/rank", {"actions": [{"id": "a", "features": []}]}, key=APP)
        assert time.monotonic() - started < 60.0
    # Who goes away in the middle makes room.
    wait_until(lambda: ask(server, "GET", "configurations/service").status == 200)


# Evaluations, models and logs: one story, since each needs what the one before left.


def serve_visitors(server: Server, count: int, seed: int) -> float:
    """Rank and reward with the unmodified SDK; gives the mean reward."""
    client = PersonalizerClient(server.url + "/", CognitiveServicesCredentials(APP))
    rng, earned = random.Random(seed), 0.0
    for _ in range(count):
        who, good = rng.choice([("anna", "salad"), ("ben", "soup")])
        answer = client.rank(
            RankRequest(
                actions=[RankableAction(id=each, features=[{"dish": each}]) for each in ACTIONS],
                context_features=[{"visitor": {"who": who}}],
            )
        )
        reward = 1.0 if answer.reward_action_id == good else 0.0
        client.events.reward(answer.event_id, reward)
        earned += reward
    return earned / count


def completed(server: Server, key: str) -> Any:
    path = f"evaluations/{key}"
    wait_until(lambda: ask(server, "GET", path).json["status"] != "pending")
    return ask(server, "GET", path).json


def generation_rows(server: Server) -> list[dict[str, Any]]:
    table = Lake(server.data_dir / "lake").scan("generations", "articles").sort("generation")
    return table.collect().to_dicts()


def serves(server: Server, number: int) -> None:
    wait_until(lambda: server.readiness()["loops"]["articles"]["generation"] == number)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose windows close at once, with visitors that an oracle can learn from."""
    # Where the socket's path is longer than an address may be.
    directory = tmp_path_factory.mktemp("a-directory-with-a-name-that-is-long" * 3)
    config = CONFIG.replace("[loops.articles]", '[loops.articles]\nattribution_window = "100 ms"')
    config = config.replace(f"= {MAX_CONTROL_BYTES}", "= 4000000")
    with running(Server(directory, config)) as started:
        serve_visitors(started, VISITORS, seed=1)
        yield started


def test_from_an_evaluation_to_a_model_and_back(busy: Server) -> None:
    time.sleep(1.5)
    # One that is deleted while it runs is stopped, and leaves nothing behind.
    many = [{"name": f"p{n}", "arguments": POLICY["arguments"]} for n in range(20)]
    unwanted = ask(busy, "POST", "evaluations", EVALUATION | {"policies": many}).json["id"]
    assert ask(busy, "DELETE", f"evaluations/{unwanted}").status == 204
    submitted = ask(busy, "POST", "evaluations", EVALUATION)
    assert submitted.status == 201
    pending = submitted.json
    assert submitted.headers["location"] == f"{PREVIEW}/evaluations/{pending['id']}"
    assert pending["status"] == "pending"
    assert pending["name"] == EVALUATION["name"]
    assert pending["startTime"] == EVALUATION["startTime"]
    evaluation = completed(busy, pending["id"])
    assert evaluation["status"] == "completed", evaluation
    check_results(evaluation)
    assert ask(busy, "GET", f"{V1}/evaluations").json == [evaluation]
    check_what_is_applied(busy, evaluation)
    check_the_model(busy)
    check_that_deletion_is_final(busy, pending["id"])


def check_results(evaluation: dict[str, Any]) -> None:
    results = {each["name"]: each for each in evaluation["policyResults"]}
    sources = {name: each["policySource"] for name, each in results.items()}
    assert {name: sources[name] for name in ("Online", "Baseline", "Random")} == {
        "Online": "Online",
        "Baseline": "Baseline",
        "Random": "Random",
    }
    assert sources["Custom learning settings 1"] == "Custom"
    assert list(sources.values()).count("OfflineExperimentation") == 4
    for result in results.values():
        total = result["totalSummary"]
        assert set(total) == SUMMARY_FIELDS
        assert total["averageReward"] == pytest.approx(
            total["ipsEstimatorNumerator"] / total["ipsEstimatorDenominator"]
        )
        for field in ("ipsEstimatorNumerator", "snipsEstimatorDenominator", "sumOfSquares"):
            assert sum(each[field] for each in result["summary"]) == pytest.approx(total[field])
        assert all(
            set(each) >= SUMMARY_FIELDS - {"confidenceInterval"} for each in result["summary"]
        )
        assert total["timeStamp"] == evaluation["endTime"]
    earned = {name: each["totalSummary"]["averageReward"] for name, each in results.items()}
    half = {name: each["totalSummary"]["confidenceInterval"] for name, each in results.items()}
    # The first dish is nobody's, any dish is a third's, and who likes what can be learned.
    assert abs(earned["Baseline"]) <= half["Baseline"]
    assert abs(earned["Random"] - 1 / 3) <= half["Random"]
    assert earned["Experiment 1"] - half["Experiment 1"] > earned["Random"] + half["Random"]
    best = max(
        (name for name in results if sources[name] not in {"Baseline", "Random"}),
        key=lambda name: earned[name],
    )
    assert evaluation["optimalPolicy"] == best
    # Only the judge's decisions count.
    assert 50 < results["Online"]["totalSummary"]["ipsEstimatorDenominator"] < 150


def check_what_is_applied(busy: Server, evaluation: dict[str, Any]) -> None:
    def apply(name: str, key: str = evaluation["id"]) -> Answer:
        body = {"evaluationId": key, "policyName": name}
        return ask(busy, "POST", "configurations/applyFromEvaluation", body)

    refused(apply("nobody"), 404, "LearningSettingsNotFound", "policyName")
    refused(apply("Random"), 404, "LearningSettingsNotFound", "policyName")
    refused(apply("Online", unique()), 404, "EvaluationNotFound", "evaluationId")
    assert apply("Online").status == 204
    serves(busy, 0)
    applied = apply("Experiment 1")
    assert (applied.status, applied.body) == (204, b"")
    serves(busy, 1)
    policy = ask(busy, "GET", "configurations/policy").json
    (chosen,) = (each for each in evaluation["policyResults"] if each["name"] == "Experiment 1")
    assert policy == {"name": "Experiment 1", "arguments": chosen["arguments"]}
    row = generation_rows(busy)[-1]
    assert (row["generation"], row["status"]) == (1, "champion")
    # What was learned from and what was judged on are all there is, and share nothing.
    judged = chosen["totalSummary"]["ipsEstimatorDenominator"]
    assert row["training_rows"] + judged == VISITORS
    for said in ("Experiment 1", evaluation["id"], "boss", "±"):
        assert said in row["override_reason"]
    # The SDK goes on as before, and meets what was learned.
    assert serve_visitors(busy, 60, seed=2) > 0.8


def check_the_model(busy: Server) -> None:
    properties = ask(busy, "GET", f"{V1}/model/properties").json
    made, put = (
        datetime.fromisoformat(properties[name]) for name in ("creationTime", "lastModifiedTime")
    )
    assert made <= put <= datetime.now(UTC)
    got = ask(busy, "GET", "model?signed=true")
    assert (got.status, got.headers["content-type"]) == (200, "application/octet-stream")
    assert ask(busy, "GET", f"{V1}/model").body == got.body
    with zipfile.ZipFile(io.BytesIO(got.body)) as archive:
        names = archive.namelist()
        files = {name: archive.read(name) for name in names}
    assert {"manifest.json", "manifest.sha256"} < set(names)

    reset = ask(busy, "DELETE", f"{V1}/model")
    assert (reset.status, reset.body) == (204, b"")
    serves(busy, 0)
    refused(ask(busy, "GET", "model"), 404, "ResourceNotFound")
    assert ask(busy, "GET", "model/properties").json == {}
    assert "boss" in generation_rows(busy)[0]["override_reason"]

    weights = next(name for name in names if name.endswith(".npz"))
    for bad in (
        b"",
        got.body[: len(got.body) // 2],
        zipped(files | {weights: files[weights][:-1] + b"!"}),
        zipped({name: files[name] for name in names if name != weights}),
        zipped(files | {"../../outside": b"x"}),
        zipped(files | {"/outside": b"x"}),
        zipped({}),
    ):
        refused(ask(busy, "PUT", "model", bad), 400, "InvalidModelImportFormat", "body")
    assert not list(busy.data_dir.parent.rglob("outside"))
    serves(busy, 0)

    again = ask(busy, "PUT", "model", got.body)
    assert (again.status, again.body) == (204, b"")
    serves(busy, 2)
    rows = generation_rows(busy)
    assert [row["status"] for row in rows] == ["retired", "retired", "champion"]
    assert (rows[2]["parent"], rows[2]["oracle"]) == (0, "vowpal_wabbit")
    assert "of generation articles 1" in rows[2]["override_reason"]
    assert serve_visitors(busy, 60, seed=3) > 0.8


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def check_that_deletion_is_final(busy: Server, key: str) -> None:
    for _ in range(2):
        gone = ask(busy, "DELETE", f"evaluations/{key}")
        assert (gone.status, gone.body) == (204, b"")
    refused(ask(busy, "GET", f"evaluations/{key}"), 404, "EvaluationNotFound")
    assert ask(busy, "GET", "evaluations").json == []
    assert list((busy.data_dir / "control" / "evaluations" / "articles").iterdir()) == []
    # Another loop's admin never saw any of it.
    assert ask(busy, "GET", "evaluations", key=OTHER).json == []


@pytest.mark.parametrize(
    ("change", "code", "target"),
    [
        ({"name": ""}, "InvalidEvaluationContract", "name"),
        ({"name": "n" * 257}, "InvalidEvaluationContract", "name"),
        ({"startTime": "yesterday"}, "InvalidEvaluationContract", "startTime"),
        ({"endTime": "2018-12-19T00:00:00Z"}, "InvalidEvaluationContract", "endTime"),
        ({"policies": None}, "InvalidEvaluationContract", "policies"),
        (
            {"policies": [{"name": "a", "arguments": "--first 3"}]},
            "InvalidEvaluationContract",
            "policies[0].arguments",
        ),
        ({"policies": [POLICY, POLICY]}, "DuplicateCustomPolicyNames", "policies[1].name"),
        (
            {"policies": [POLICY | {"name": "Random"}]},
            "DuplicateCustomPolicyNames",
            "policies[0].name",
        ),
    ],
    ids=str,
)
def test_an_evaluation_that_cannot_be_is_refused(
    server: Server, change: dict[str, Any], code: str, target: str
) -> None:
    refused(ask(server, "POST", "evaluations", EVALUATION | change), 400, code, target)
    assert ask(server, "GET", "evaluations").json == []


def test_an_evaluation_of_nothing_fails_and_says_so(server: Server) -> None:
    body = EVALUATION | {"endTime": "2018-12-20T00:00:00Z"}
    key = ask(server, "POST", f"{V1}/evaluations", body).json["id"]
    failed = completed(server, key)
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "NoLogsExistInDateRange"
    body = {"evaluationId": key, "policyName": "Custom learning settings 1"}
    answer = ask(server, "POST", "configurations/applyFromEvaluation", body)
    refused(answer, 404, "EvaluationModelNotFound", "evaluationId")
    ask(server, "DELETE", f"evaluations/{key}")


# Logs.

LINE: dict[str, Any] = {
    "_label_cost": -1.0,
    "_label_probability": 0.75,
    "_label_Action": 2,
    "_labelIndex": 1,
    "o": [{"v": 1.0, "EventId": "imported-1", "ActionTaken": False}],
    "Timestamp": "2020-11-15T17:09:31.8350000Z",
    "Version": "1",
    "EventId": "imported-1",
    "a": [2, 1],
    "c": {
        "FromUrl": [{"visitor": {"who": "anna"}}],
        "_multi": [
            {"_tag": "pasta", "i": {"constant": 1, "id": "pasta"}, "j": [{"dish": "pasta"}]},
            {"_tag": "salad", "i": {"constant": 1, "id": "salad"}, "j": [{"dish": "salad"}]},
        ],
    },
    "p": [0.75, 0.25],
    "VWState": {"m": "N/A"},
}


def lines(*values: Any) -> bytes:
    return b"\n".join(json.dumps(value).encode() for value in values) + b"\n"


def test_logs_are_imported_once_told_and_forgotten(serve_own: Server) -> None:
    server = serve_own
    missing = ask(server, "GET", "logs/properties")
    refused(missing, 404, "LogsPropertiesNotFound")
    second = LINE | {"EventId": "imported-2", "o": [], "Timestamp": "2020-11-16T17:09:31Z"}
    before = server.events()
    for broken in (second | {"a": [1, 1]}, second | {"p": [0.75]}, {"EventId": "x"}):
        answer = ask(server, "POST", "logs/interactions", lines(LINE, broken))
        assert refused(answer, 400, "InvalidRequest").startswith("line 2: ")
    refused(ask(server, "POST", "logs/interactions", b"\x00\x01binary"), 400, "InvalidRequest")
    assert server.events() == before
    for _ in range(2):
        posted = ask(server, "POST", "logs/interactions", lines(LINE, second))
        assert (posted.status, posted.body) == (204, b"")
    observed = lines({"EventId": "imported-2", "v": 0.5}, {"EventId": "imported-1", "v": 0})
    assert ask(server, "POST", "logs/observations", observed).status == 204
    answer = ask(server, "POST", "logs/observations", lines({"EventId": "imported-2", "v": 7}))
    refused(answer, 400, "InvalidRequest", "line 1: v")

    decision = server.decision("imported-1")
    assert (decision.propensity, decision.pmf, decision.chosen) == (0.75, [0.25, 0.75], 1)
    assert decision.context == {"visitor": {"who": "anna"}}
    assert [action.id for action in decision.actions] == ["pasta", "salad"]
    assert decision.actions[1].features == {"dish": "salad"}
    told = ask(server, "GET", f"{V1}/logs/properties").json
    assert told == {
        "dateRange": {"from": "2020-11-15T17:09:31.835000Z", "to": "2020-11-16T17:09:31Z"}
    }

    assert run_command(server, "join") == 0
    lake = Lake(server.data_dir / "lake")
    joined = lake.scan("interactions", "articles").sort("ts").collect()
    assert joined["decision_id"].to_list() == ["imported-1", "imported-2"]
    # The label's cost is the second one's reward: it has no observation that was in time.
    assert joined["reward"].to_list() == [1.0, 1.0]
    assert joined["generation"].to_list() == [None, None]
    assert run_command(server, "audit") == 0
    assert ask(server, "GET", "logs/properties").json == told

    ranked(server)
    deleted = ask(server, "DELETE", "logs")
    assert (deleted.status, deleted.body) == (204, b"")
    refused(ask(server, "GET", "logs/properties"), 404, "LogsPropertiesNotFound")
    for table in ("decisions", "outcomes", "interactions"):
        assert lake.scan(table, "articles").collect().is_empty()
    assert lake.scan("decisions", "other").select(pl.len()).collect().item() == 1
    # Not only from what is read: nothing of it is left in any file.
    lake_files = (server.data_dir / "lake").rglob("*.parquet")
    assert {path.parent.parent.name for path in lake_files} == {"loop=other"}
    assert run_command(server, "join") == 0
    assert lake.scan("interactions", "articles").collect().is_empty()


@pytest.fixture
def serve_own(tmp_path: Path) -> Iterator[Server]:
    """A server with a decision of another loop, which has to stay."""
    with running(Server(tmp_path, CONFIG)) as own:
        body = lines(LINE | {"EventId": "of-another"})
        assert ask(own, "POST", "logs/interactions", body, key=OTHER).status == 400
        line = LINE | {"EventId": "of-another", "o": [{"v": 0.5}]}
        assert ask(own, "POST", "logs/interactions", lines(line), key=OTHER).status == 204
        # Outcomes of every kind that a client reports.
        assert isinstance(own.events()[-1], Outcome)
        yield own


def run_command(server: Server, *arguments: str, code: int = 0) -> int:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "croupier",
            *arguments,
            "--config",
            str(server.data_dir.parent / "croupier.toml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.returncode


# The process.


def control_process(server: Server) -> int | None:
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = status.read_bytes()
            parent = int((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"croupier.control.process" in command and parent == server.process.pid:
            return int(status.parent.name)
    return None


def test_it_starts_when_asked_is_replaced_and_never_left_behind(tmp_path: Path) -> None:
    with running(Server(tmp_path, CONFIG)) as server:
        assert ranked(server).generation == 0
        # Nobody asked for it, so nobody pays for it.
        assert control_process(server) is None
        assert ask(server, "GET", "configurations/service").status == 200
        first = control_process(server)
        assert first is not None
        assert oct((server.data_dir / "control" / "control.sock").stat().st_mode)[-3:] == "600"
        os.kill(first, signal.SIGKILL)
        # Whoever asks meanwhile waits for the next one.
        assert ask(server, "GET", "configurations/service").status == 200
        second = control_process(server)
        assert second not in {None, first}
        assert server.stop() == 0
        assert not Path(f"/proc/{second}").exists()


def test_all_workers_decide_by_what_was_set(tmp_path: Path) -> None:
    config = CONFIG.replace("[service]", "[service]\nworkers = 2", 1)
    with running(Server(tmp_path, config)) as server:
        put = ask(server, "GET", "configurations/service").json | {"explorationPercentage": 0.5}
        assert ask(server, "PUT", "configurations/service", put).status == 200
        set_ = [MixComponent("generation:0", 0.5), MixComponent("uniform", 0.5)]
        wait_until(lambda: all(ranked(server).mix == set_ for _ in range(8)))
        # Whichever worker is asked, the control plane is the same one.
        answers = [ask(server, "GET", "configurations/service") for _ in range(8)]
        assert {answer.json["explorationPercentage"] for answer in answers} == {0.5}


def test_while_it_is_away_there_is_a_503_and_decisions_go_on(tmp_path: Path) -> None:
    server = Server(tmp_path, CONFIG)
    # It can't make its directory.
    server.data_dir.mkdir()
    (server.data_dir / "control").write_text("in the way")
    server.start()
    try:
        with server.caller() as caller:
            answer = ask(server, "GET", "configurations/service", again=False)
            refused(answer, 503, "ControlPlaneUnavailable")
            assert NOT_LISTENING in answer.body
            assert answer.headers["retry-after"] == "1"
            body = json.dumps({"actions": [{"id": "a", "features": []}]}).encode()
            headers = {"Ocp-Apim-Subscription-Key": APP}
            assert caller.send("POST", f"{V1}/rank", body, headers).status == 201
        assert server.stop() == 0
    finally:
        server.kill()


def test_what_is_busy_or_away_is_said_and_tried_again_later(tmp_path: Path) -> None:
    away = CONFIG + '[registry]\ntracking_uri = "http://127.0.0.1:9"\n'
    server = Server(tmp_path, away)
    server.start()
    try:
        # Without the registry there is no model; settings have nothing to do with it.
        answer = ask(server, "GET", "model")
        refused(answer, 503, "RegistryUnavailable")
        assert answer.headers["retry-after"] == "1"
        assert ask(server, "PUT", "configurations/service", SERVICE).status == 200
        ranked(server)
        with Lake(server.data_dir / "lake").lock():
            answer = ask(server, "DELETE", "logs")
            refused(answer, 503, "OperationNotAllowed")
            assert answer.headers["retry-after"] == "1"
        assert ask(server, "GET", "logs/properties").status == 200
        assert ask(server, "DELETE", "logs").status == 204
        assert "Traceback" not in server.stderr()
    finally:
        server.kill()


def test_an_interrupted_evaluation_is_done_after_a_restart(tmp_path: Path) -> None:
    config = CONFIG.replace("[loops.articles]", '[loops.articles]\nattribution_window = "100 ms"')
    with running(Server(tmp_path, config)) as server:
        serve_visitors(server, 60, seed=4)
        time.sleep(1.2)
        policies = [{"name": f"p{n}", "arguments": POLICY["arguments"]} for n in range(15)]
        body = EVALUATION | {"policies": policies}
        key = ask(server, "POST", "evaluations", body).json["id"]
        process = control_process(server)
        assert process is not None
        os.kill(process, signal.SIGKILL)
        server.kill()
        kept = json.loads(
            (server.data_dir / "control" / "evaluations" / "articles" / f"{key}.json").read_bytes()
        )
        assert kept["evaluation"]["status"] == "pending"
        # Another one was damaged, and is no more than that.
        damaged = server.data_dir / "control" / "evaluations" / "articles" / f"{uuid.uuid4()}.json"
        damaged.write_bytes(b"{")
        server.start()
        refused(ask(server, "GET", f"evaluations/{damaged.stem}"), 404, "EvaluationNotFound")
        assert completed(server, key)["status"] == "completed"


def test_batch_commands_honour_what_was_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Server(tmp_path, CONFIG)) as server:
        put = restored(server) | {"rewardWaitTime": "PT0.1S", "defaultReward": 0.5}
        assert ask(server, "PUT", "configurations/service", put).status == 200
        for _ in range(3):
            ranked(server)
        time.sleep(1.2)
        assert run_command(server, "join") == 0
        joined = Lake(server.data_dir / "lake").scan("interactions", "articles").collect()
        assert joined["reward"].to_list() == [0.5, 0.5, 0.5]
        monkeypatch.setattr(
            sys,
            "argv",
            ["croupier", "status", "--config", str(tmp_path / "croupier.toml"), "--json"],
        )
        with pytest.raises(SystemExit):
            main()
        (loop,) = (
            each
            for each in json.loads(capsys.readouterr().out)["loops"]
            if each["loop"] == "articles"
        )
        assert "attribution_window 100 ms, default_reward 0.5" in loop["settings"]
        assert "'boss'" in loop["settings"]
