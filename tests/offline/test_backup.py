"""A backup under load has all that was acknowledged before it, and a restored directory goes on."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import urllib3

from croupier.cli.main import main
from croupier.offline.backup import backup, restore
from croupier.offline.lake import Lake, LakeLockedError
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.service.client import Client
from tests.offline.shop import Shop
from tests.offline.worlds import random_world
from tests.processes import free_port, running_scorer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning"),
]

ACTIONS = [{"id": name} for name in ("red", "green", "blue")]


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and its data directory, with a log and a lake in it."""
    config = tmp_path / "croupier.toml"
    config.write_text(
        f"""\
data_dir = "data"

[service]
port = {free_port()}

[log]
segment_rows = 100

[loops.shop]
attribution_window = "1 s"
exploration = {{ kind = "epsilon_greedy", epsilon = 0.3 }}
oracle = {{ kind = "sklearn" }}
"""
    )
    return config, tmp_path / "data"


class Load(threading.Thread):
    """Decides and sends rewards until it is stopped.

    Attributes
    ----------
    acknowledged
        Ids of decisions that were answered, in their order.
    """

    def __init__(self, url: str, name: str) -> None:
        super().__init__(name=name)
        self.acknowledged: list[str] = []
        self._url = url
        self._stopping = threading.Event()

    def run(self) -> None:
        with Client(self._url, "shop") as client:
            while not self._stopping.is_set():
                number = len(self.acknowledged)
                answer = client.decide(ACTIONS, {"hour": number % 24})
                client.reward(answer.decision_id, float(answer.action == "green"))
                self.acknowledged.append(answer.decision_id)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def croupier(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["croupier", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def await_decisions(load: Load, count: int) -> None:
    pause = threading.Event()
    while len(load.acknowledged) < count:
        assert load.is_alive()
        pause.wait(0.01)


def await_interactions(
    monkeypatch: pytest.MonkeyPatch, data: Path, options: tuple[str, ...]
) -> None:
    """Sink and join until enough windows are over to learn from."""
    deadline = time.monotonic() + 180
    while True:
        assert croupier(monkeypatch, "sink", *options) == 0
        assert croupier(monkeypatch, "join", *options) == 0
        if len(Lake(data / "lake").scan("interactions", "shop").collect()) >= 100:
            return
        assert time.monotonic() < deadline


def await_champion(url: str, generation: int) -> None:
    deadline, pause, report = time.monotonic() + 180, threading.Event(), None
    while time.monotonic() < deadline:
        report = urllib3.request("GET", f"{url}/readyz").json()
        if report["loops"]["shop"]["generation"] == generation:
            return
        pause.wait(0.1)
    raise AssertionError(f"generation {generation} is not served: {report}")


def test_what_was_acknowledged_before_a_backup_under_load_is_there_after_a_loss(
    shop: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = shop
    copy, options = tmp_path / "backup", ("--config", str(config))
    with running_scorer(config, data) as url:
        load = Load(url, "load")
        load.start()
        try:
            await_decisions(load, 150)
            await_interactions(monkeypatch, data, options)
            assert croupier(monkeypatch, "retrain", *options) == 0
            reason = ("--override", "--reason", "a champion to come back to")
            assert croupier(monkeypatch, "promote", "shop", "1", *reason, *options) == 0
            before = list(load.acknowledged)
            assert croupier(monkeypatch, "backup", str(copy), *options) == 0
            during = len(load.acknowledged) - len(before)
            await_decisions(load, len(before) + during + 50)
        finally:
            load.stop()
    assert during > 0
    shutil.rmtree(data)

    assert croupier(monkeypatch, "restore", str(copy), *options) == 0
    assert croupier(monkeypatch, "sink", *options) == 0
    found = Lake(data / "lake").scan("decisions", "shop").collect()["decision_id"].to_list()
    assert len(found) == len(set(found))
    assert set(before) <= set(found) <= set(load.acknowledged)
    # What came during the backup is there up to some position, and without holes.
    assert sorted(found) == sorted(load.acknowledged[: len(found)])

    assert croupier(monkeypatch, "join", *options) == 0
    assert croupier(monkeypatch, "audit", *options) == 0
    assert croupier(monkeypatch, "lake", "verify", *options) == 0
    # Built anew from the restored log, the lake is the restored one.
    assert croupier(monkeypatch, "replay", str(tmp_path / "again"), *options) == 0

    with running_scorer(config, data) as url:
        await_champion(url, 1)
        with Client(url, "shop") as client:
            assert client.decide(ACTIONS, {"hour": 3}, decision_id="after").generation == 1


def test_a_data_directory_may_be_restored_elsewhere(
    shop: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = shop
    data.mkdir()
    made = Shop(data, random_world(3, 3, seed=1))
    made.day(400)
    made.night()
    backup(data, Lake(data / "lake"), tmp_path / "backup")
    shutil.rmtree(data)
    elsewhere = tmp_path / "elsewhere" / "data"
    options = ("--config", str(config), "--data-dir", str(elsewhere))
    assert croupier(monkeypatch, "restore", str(tmp_path / "backup"), *options) == 0
    assert croupier(monkeypatch, "report", "--generation", "1", *options) == 0


def test_what_is_refused(shop: tuple[Path, Path], tmp_path: Path) -> None:
    _, data = shop
    data.mkdir()
    Shop(data, random_world(3, 2, seed=2)).day(20)
    lake = Lake(data / "lake")
    with lake.lock(), pytest.raises(LakeLockedError):
        backup(data, lake, tmp_path / "locked")
    with pytest.raises(InvalidInputError, match="outside"):
        backup(data, lake, data / "within")
    made = backup(data, lake, tmp_path / "backup")
    with pytest.raises(InvalidInputError, match="doesn't exist"):
        backup(data, lake, tmp_path / "backup")
    with pytest.raises(ConfigError, match="expected nothing in"):
        restore(tmp_path / "backup", data)
    with pytest.raises(InvalidInputError, match="expected a whole backup"):
        restore(tmp_path / "locked", tmp_path / "fresh")
    later = msgspec.structs.replace(made, parts=[*made.parts, "gone"])
    (tmp_path / "backup" / "backup.json").write_bytes(msgspec.json.encode(later))
    with pytest.raises(InvalidInputError, match="expected gone in"):
        restore(tmp_path / "backup", tmp_path / "fresh")
