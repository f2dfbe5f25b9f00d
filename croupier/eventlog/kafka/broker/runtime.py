"""What a broker runs on: Java, and Kafka's jars, which Maven fetches once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from croupier.policy.errors import ConfigError

__all__ = ("FILES", "KAFKA_VERSION", "Runtime")

_PACKAGED = Path(__file__).parent / "files"
FILES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[4] / "docker" / "kafka"
"""``pom.xml`` and settings: ``docker/kafka`` of a checkout, packaged beside this module."""

KAFKA_VERSION = "4.1.1"
"""Of the broker, as in ``pom.xml``."""

_OLDEST_JAVA = 17
_FETCH_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """Java and the jars.

    Attributes
    ----------
    java
        The program.
    libs
        Folder that holds the jars.
    """

    java: str
    libs: Path

    @classmethod
    def find(cls, cache: Path | None = None) -> Runtime:
        """Find Java and the jars; Maven fetches the latter where they are missing.

        Parameters
        ----------
        cache
            Where jars are kept; the user's own cache unless given.

        Raises
        ------
        ConfigError
            If Java is missing or too old, or if the jars are missing and can't be fetched.
        """
        java = _java()
        pom = FILES / "pom.xml"
        # Another pom has other jars.
        digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
        libs = (cache or _user_cache()) / f"kafka-{KAFKA_VERSION}-{digest}"
        if not libs.is_dir():
            _fetch(pom, libs)
        return cls(java, libs)

    def command(self, main: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs one of the jars' main classes."""
        return [
            self.java,
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            *options,
            f"-Dlog4j2.configurationFile={FILES / 'log4j2.properties'}",
            "-cp",
            f"{self.libs}/*",
            main,
            *arguments,
        ]


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        where = f"JAVA_HOME ({home})" if home else "the path"
        raise ConfigError("java", f"expected Java {_OLDEST_JAVA} or newer in {where}, found none")
    # It says so on the standard error.
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < _OLDEST_JAVA:
        first = said.partition("\n")[0]
        raise ConfigError(
            "java",
            f"expected Java {_OLDEST_JAVA} or newer at {java}, found {first or 'no version'}",
        )
    return java


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "croupier"


def _fetch(pom: Path, libs: Path) -> None:
    """Have Maven fetch the jars, into place in one step; another process may do the same."""
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(
            "maven", f"expected mvn on the path, once, to fetch Kafka {KAFKA_VERSION} with"
        )
    try:
        libs.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=libs.parent, prefix=".fetching-") as folder:
            _resolve(maven, pom, Path(folder))
            try:
                (Path(folder) / "libs").rename(libs)
            except OSError:
                # Somebody else was faster.
                if not libs.is_dir():
                    raise
    except OSError as error:
        raise ConfigError("maven", f"expected to keep Kafka's jars in {libs}: {error}") from error


def _resolve(maven: str, pom: Path, folder: Path) -> None:
    shutil.copy(pom, folder / "pom.xml")
    try:
        done = subprocess.run(  # noqa: S603
            [
                *(maven, "-q", "-B", "-f", str(folder / "pom.xml")),
                "dependency:copy-dependencies",
                f"-DoutputDirectory={folder / 'libs'}",
                "-DincludeScope=runtime",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            "maven", f"expected Kafka's jars within {_FETCH_TIMEOUT_S:.0f} s, got none"
        ) from error
    if done.returncode != 0:
        first = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stdout)
        raise ConfigError(
            "maven",
            f"expected to fetch Kafka {KAFKA_VERSION}, mvn says: {first.strip() or 'nothing'}",
        )
