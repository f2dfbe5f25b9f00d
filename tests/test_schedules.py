"""The examples of schedules: they are what cron, systemd and Kubernetes take, and the CLI too."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples" / "schedules"
DATA = {"/var/lib/croupier", "/data"}
CONFIG = """\
[loops.shop]
exploration = { kind = "epsilon_greedy", epsilon = 0.3 }
oracle = { kind = "sklearn" }
"""


def crontab() -> tuple[dict[str, str], list[str]]:
    """The variables of the crontab, and the fields of its one line."""
    lines = (EXAMPLES / "crontab").read_text().splitlines()
    given = [line for line in lines if line and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in given if re.match(r"[A-Z_]+=", line))
    (entry,) = [line for line in given if not re.match(r"[A-Z_]+=", line)]
    return variables, entry.split(maxsplit=5)


def unit(name: str) -> configparser.ConfigParser:
    # Names of systemd's settings can stand more than once, and keep their case.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLES / name)
    return parser


def cron_job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())
    return found


def pod() -> dict[str, Any]:
    template: dict[str, Any] = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return template


def arguments_of(example: str) -> list[str]:
    """What `croupier` is called with."""
    match example:
        case "cron":
            _, (*_, command) = crontab()
            name, *arguments = shlex.split(command.partition(" >> ")[0])
        case "systemd":
            name, *arguments = shlex.split(unit("croupier-nightly.service")["Service"]["ExecStart"])
        case _:
            name, arguments = "croupier", pod()["containers"][0]["args"]
    assert Path(name).name == "croupier"
    return arguments


@pytest.mark.parametrize("example", ["cron", "systemd", "kubernetes"])
def test_the_command_does_a_night(example: str, tmp_path: Path) -> None:
    """As it stands there, but for where configuration and data are."""
    config = tmp_path / "croupier.toml"
    config.write_text(CONFIG)
    arguments = arguments_of(example)
    assert "/etc/croupier/croupier.toml" in arguments
    assert len(DATA.intersection(arguments)) == 1
    here = {"/etc/croupier/croupier.toml": str(config)} | dict.fromkeys(
        DATA, str(tmp_path / "data")
    )
    done = subprocess.run(
        [sys.executable, "-m", "croupier", *(here.get(each, each) for each in arguments), "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert [night["loop"] for night in json.loads(done.stdout)["loops"]] == ["shop"]


def test_the_crontab_is_one() -> None:
    variables, (minute, hour, *rest, command) = crontab()
    assert variables["CRON_TZ"] == "UTC"
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert rest == ["*", "*", "*"]
    # Cron takes the first of these for the end of the line.
    assert "%" not in command
    assert set(re.findall(r"\$(\w+)", command)) <= variables.keys()


def test_the_crontab_mails_the_last_line_of_a_night_that_failed(tmp_path: Path) -> None:
    variables, (*_, command) = crontab()
    (tmp_path / "croupier").write_text("#!/bin/sh\necho sink: done\necho error: no >&2\nexit 2\n")
    (tmp_path / "croupier").chmod(0o755)
    log = tmp_path / "nightly.log"
    path = f"{tmp_path}:{variables['PATH']}"
    mailed = subprocess.run(
        ["/bin/sh", "-c", command],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": path, "LOG": str(log)},
    )
    assert (mailed.stdout, mailed.stderr) == ("error: no\n", "")
    assert log.read_text() == "sink: done\nerror: no\n"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("croupier-nightly.service", "croupier-nightly.timer"):
        # It looks whether the program is there.
        text = (EXAMPLES / name).read_text().replace("/opt/croupier/bin/croupier", "/bin/true")
        (tmp_path / name).write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "croupier-nightly.timer")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    said = [line for line in verified.stderr.splitlines() if "croupier-nightly" in line]
    assert (verified.returncode, said) == (0, [])


def test_the_timer_starts_the_service() -> None:
    timer, service = unit("croupier-nightly.timer"), unit("croupier-nightly.service")
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:\d\d UTC", timer["Timer"]["OnCalendar"])
    assert timer["Timer"]["Persistent"] == "yes"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert service["Service"]["Type"] == "oneshot"
    assert service["Service"]["ReadWritePaths"] in DATA
    assert service["Service"]["User"] != "root"


def test_the_cron_job_runs_one_night_at_a_time_without_rights() -> None:
    job = cron_job()
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["spec"]["timeZone"] == "Etc/UTC"
    assert pod()["restartPolicy"] == "Never"
    assert pod()["securityContext"]["runAsNonRoot"] is True
    (container,) = pod()["containers"]
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


def test_the_cron_job_has_the_image_s_user_and_room_to_write() -> None:
    image = (EXAMPLES.parents[1] / "docker" / "Dockerfile").read_text()
    assert f"--uid {pod()['securityContext']['runAsUser']} " in image
    (container,) = pod()["containers"]
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts.keys() == {each["name"] for each in pod()["volumes"]}
    arguments = container["args"]
    assert mounts["data"]["mountPath"] == arguments[arguments.index("--data-dir") + 1]
    written = {each["value"] for each in container["env"]}
    assert written == {mounts["tmp"]["mountPath"]}
