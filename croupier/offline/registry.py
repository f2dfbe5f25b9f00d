"""Publishing generations: MLflow runs, model versions, and the aliases and tags of a loop's plan.

The aliases `champion`, `canary` and `shadow` name the generations that scorers serve; tags of the
registered model hold the canary's share and the reason of the kill switch, and one tag for every
change of these says who made it, when and why.
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import msgspec

from croupier.offline import served
from croupier.offline.served import signature
from croupier.offline.tracking import RegistryError, Tracking, reported
from croupier.policy.errors import GenerationError, InvalidInputError
from croupier.policy.events import MAX_REASON_LENGTH
from croupier.policy.generation import Generation, cold_start, registered_model_name
from croupier.policy.traffic import (
    CANARY,
    CHAMPION,
    KILLED_TAG,
    SHADOW,
    SHARE_TAG,
    Split,
    canary_share,
    check_share,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from croupier.policy.exploration import Exploration

__all__ = ("Change", "Published", "Registry")

_GENERATION = "generation"
# Alias of what was published last.
_CHALLENGER = "challenger"
_CHANGE_TAG = "croupier.change."
_GENERATION_TAG = "croupier.generation"


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes a loop's plan, when and why; what was changed is added when it is recorded.

    Attributes
    ----------
    by
        Who.
    ts
        When, in microseconds since the Unix epoch, UTC.
    reason
        Why, at most 500 characters; can be left out but for the kill switch.
    what
        What was changed.
    """

    by: str
    ts: int
    reason: str = ""
    what: str = ""

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON_LENGTH:
            raise InvalidInputError(
                "reason", f"expected at most {MAX_REASON_LENGTH} characters, got {len(self.reason)}"
            )


@dataclass(frozen=True, slots=True)
class Published:
    """The run of a generation, and the parameters that were logged with it."""

    run_id: str
    params: dict[str, str]


class Registry:
    """One MLflow server or database with its artifact store.

    Every method raises :class:`RegistryError` if MLflow can't be reached.

    Parameters
    ----------
    tracking_uri
        Of MLflow; an ``sqlite:///`` file is made on the first write.
    artifacts
        Directory for the files of runs, where MLflow has no store of its own.
    """

    def __init__(self, tracking_uri: str, artifacts: Path) -> None:
        self.tracking_uri = tracking_uri
        self._tracking = Tracking(tracking_uri, artifacts)

    def publish(
        self,
        generation: Generation,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        figures: Mapping[str, Figure] | None = None,
    ) -> str:
        """Log a run that holds the generation, register it as challenger; gives the run's id.

        What is registered is a model that MLflow can serve, see :mod:`croupier.offline.served`: the
        run's artifacts as a whole, with the generation within them.
        """
        with reported("publishing a generation"):
            client = self._tracking.client()
            name = registered_model_name(generation.loop)
            self._ensure_model(name)
            run = client.create_run(
                self._tracking.experiment(generation.loop),
                run_name=f"generation {generation.number}",
                tags={_GENERATION_TAG: str(generation.number)},
            )
            run_id: str = run.info.run_id
            for key, value in params.items():
                client.log_param(run_id, key, value)
            for key, number in metrics.items():
                client.log_metric(run_id, key, number)
            with tempfile.TemporaryDirectory() as staging:
                directory = Path(staging) / "generation"
                generation.save(directory)
                client.log_artifacts(run_id, str(directory), _GENERATION)
            for key, figure in (figures or {}).items():
                client.log_figure(run_id, figure, f"figures/{key}.png")
            client.log_text(run_id, _model_file(run_id), "MLmodel")
            version = client.create_model_version(
                name,
                source=run.info.artifact_uri,
                run_id=run_id,
                tags={"generation": str(generation.number)},
            )
            client.set_registered_model_alias(name, _CHALLENGER, version.version)
            # Last: a run that goes on is one whose process has died, see `finish`.
            client.set_terminated(run_id)
        return run_id

    def finish(self, loop: str) -> None:
        """Put right what a process that died within :meth:`publish` or :meth:`promote` has left.

        A generation that was registered becomes the challenger. A run that wasn't is deleted, and
        its number is free. Nobody else may be publishing meanwhile.
        """
        if self._model(loop) is None:
            return
        with reported("looking for runs that were broken off"):
            client, name = self._tracking.client(), registered_model_name(loop)
            versions = {each.run_id: each for each in self._versions(loop)}
            for run_id in self._broken_off(loop):
                version = versions.get(run_id)
                if version is None:
                    client.set_terminated(run_id, "KILLED")
                    client.delete_run(run_id)
                    continue
                client.set_registered_model_alias(name, _CHALLENGER, version.version)
                client.set_terminated(run_id)
            aliases = client.get_registered_model(name).aliases
            if CHAMPION in aliases:
                self._relieve(name, aliases, aliases[CHAMPION])

    def promote(self, loop: str, number: int) -> None:
        """Give a generation the alias champion; scorers pick it up.

        If it was the canary or the shadow, it is no longer.

        Raises
        ------
        GenerationError
            If the registry doesn't have it.
        """
        version = self._version(loop, number)
        with reported("promoting a generation"):
            client, name = self._tracking.client(), registered_model_name(loop)
            client.set_registered_model_alias(name, CHAMPION, version.version)
            self._relieve(name, client.get_registered_model(name).aliases, version.version)

    def roll_back(self, loop: str, number: int, change: Change) -> None:
        """Give the alias champion back to a generation; 0 takes it away. Scorers pick it up.

        Raises
        ------
        GenerationError
            If the registry doesn't have it.
        """
        what = f"rolled back from {self.champion(loop)} to {number}"
        if number:
            self.promote(loop, number)
        with reported("rolling back"):
            name = registered_model_name(loop)
            if not number:
                self._tracking.client().delete_registered_model_alias(name, CHAMPION)
            self._record(name, change, what)

    def reset(self, loop: str, change: Change) -> None:
        """Take the alias champion away: the cold start is served."""
        model = self._model(loop)
        if model is None or CHAMPION not in model.aliases:
            return
        with reported("resetting to the cold start"):
            self._tracking.client().delete_registered_model_alias(model.name, CHAMPION)
            self._record(model.name, change, "reset to the cold start")

    def split(self, loop: str) -> Split:
        """The plan as it is registered.

        Raises
        ------
        GenerationError
            If somebody has changed it into one that can't be served.
        """
        model = self._model(loop)
        if model is None:
            return Split(generation=0)
        try:
            numbers = {
                alias: self._number(model.name, model.aliases[alias])
                for alias in (CHAMPION, CANARY, SHADOW)
                if alias in model.aliases
            }
            return Split(
                generation=numbers.get(CHAMPION, 0),
                canary=numbers.get(CANARY),
                canary_share=canary_share(model.tags) if CANARY in numbers else 0.0,
                shadow=numbers.get(SHADOW),
                killed=model.tags.get(KILLED_TAG),
            )
        except (KeyError, ValueError) as error:
            raise GenerationError(f"the plan of {loop!r} in the registry: {error}") from error

    def changes(self, loop: str) -> list[Change]:
        """Who changed the plan, when and why, by time: all changes but promotions."""
        model = self._model(loop)
        tags = {} if model is None else model.tags
        return [_read_change(key, tags[key]) for key in sorted(tags) if key.startswith(_CHANGE_TAG)]

    def set_canary(self, loop: str, number: int, share: float, change: Change) -> None:
        """Try a generation on a share of the traffic.

        Raises
        ------
        InvalidInputError
            If the share is not in (0, 1), or the generation is the champion.
        GenerationError
            If the registry doesn't have it.
        """
        try:
            check_share(share)
        except ValueError as error:
            raise InvalidInputError("share", str(error)) from error
        version = self._other_version(CANARY, loop, number)
        with reported("setting the canary"):
            client, name = self._tracking.client(), registered_model_name(loop)
            # At no moment does the canary before get the new share.
            client.delete_registered_model_alias(name, CANARY)
            client.set_registered_model_tag(name, SHARE_TAG, repr(share))
            client.set_registered_model_alias(name, CANARY, version.version)
            self._record(name, change, f"canary {number} with share {share:g}")

    def set_shadow(self, loop: str, number: int, change: Change) -> None:
        """Ask a generation beside those that are played, and log what it says.

        Raises
        ------
        InvalidInputError
            If it is the champion.
        GenerationError
            If the registry doesn't have it.
        """
        version = self._other_version(SHADOW, loop, number)
        with reported("setting the shadow"):
            name = registered_model_name(loop)
            self._tracking.client().set_registered_model_alias(name, SHADOW, version.version)
            self._record(name, change, f"shadow {number}")

    def clear_split(self, loop: str, change: Change) -> None:
        """Take canary and shadow away; the champion gets all of the traffic."""
        if self._model(loop) is None:
            return
        with reported("clearing canary and shadow"):
            name = registered_model_name(loop)
            self._drop_canary(name)
            self._tracking.client().delete_registered_model_alias(name, SHADOW)
            self._record(name, change, "canary and shadow cleared")

    def kill(self, loop: str, change: Change) -> None:
        """Have all scorers of a loop play the baseline until :meth:`resume`.

        Raises
        ------
        InvalidInputError
            If no reason is given.
        RegistryError
            If the registry was never made: no scorer would ask it.
        """
        if not change.reason.strip():
            raise InvalidInputError("reason", "expected why the loop is killed")
        if self._tracking.is_new():
            raise RegistryError(f"there is no registry yet at {self.tracking_uri}")
        with reported("turning the kill switch on"):
            name = registered_model_name(loop)
            self._ensure_model(name)
            self._tracking.client().set_registered_model_tag(name, KILLED_TAG, change.reason)
            self._record(name, change, "killed")

    def resume(self, loop: str, change: Change) -> None:
        """Turn the kill switch off."""
        model = self._model(loop)
        if model is None or KILLED_TAG not in model.tags:
            return
        with reported("turning the kill switch off"):
            self._tracking.client().delete_registered_model_tag(model.name, KILLED_TAG)
            self._record(model.name, change, "resumed")

    def champion(self, loop: str) -> int:
        """Number of the champion; 0, the cold start, if no generation was ever promoted."""
        model = self._model(loop)
        if model is None or CHAMPION not in model.aliases:
            return 0
        return self._number(model.name, model.aliases[CHAMPION])

    def load(
        self,
        loop: str,
        number: int,
        exploration: Exploration | None = None,
        *,
        to_learn: bool = False,
    ) -> Generation:
        """Read a generation back; number 0 is the cold start.

        Parameters
        ----------
        loop, number
            Which one.
        exploration
            The loop's, which the cold start depends on; see
            :func:`~croupier.policy.generation.cold_start`.
        to_learn
            Whether its oracle is to learn on.

        Raises
        ------
        GenerationError
            If the registry doesn't have it, or not in order.
        """
        if number == 0:
            return cold_start(loop, exploration)
        version = self._version(loop, number)
        with tempfile.TemporaryDirectory() as staging:
            with reported("reading a generation"):
                downloaded = self._tracking.client().download_artifacts(
                    version.run_id, _GENERATION, staging
                )
            return Generation.load(Path(downloaded), to_learn=to_learn)

    def published(self, loop: str, number: int) -> Published:
        """Where a generation is, and what it was published with.

        Raises
        ------
        GenerationError
            If the registry doesn't have it.
        """
        version = self._version(loop, number)
        with reported("reading a run"):
            run = self._tracking.client().get_run(version.run_id)
        return Published(version.run_id, dict(run.data.params))

    def attach(self, loop: str, number: int, texts: Mapping[str, str]) -> None:
        """Put texts beside a generation, in the place of those that are there under their names.

        Parameters
        ----------
        loop, number
            Whose run they become artifacts of.
        texts
            By path among the artifacts.

        Raises
        ------
        GenerationError
            If the registry doesn't have the generation.
        """
        run_id = self._version(loop, number).run_id
        with reported("attaching to a generation"):
            for name, text in texts.items():
                self._tracking.client().log_text(run_id, text, name)

    def attached(self, loop: str, number: int, name: str) -> str | None:
        """A text that stands beside a generation; None if there is none of that name.

        Raises
        ------
        GenerationError
            If the registry doesn't have the generation.
        """
        run_id = self._version(loop, number).run_id
        with reported("reading what is attached to a generation"):
            client = self._tracking.client()
            folder = name.rpartition("/")[0] or None
            if name not in {each.path for each in client.list_artifacts(run_id, folder)}:
                return None
            with tempfile.TemporaryDirectory() as staging:
                return Path(client.download_artifacts(run_id, name, staging)).read_text("utf-8")

    def place_of(self, loop: str, number: int, name: str) -> str:
        """Where an artifact of a generation is: a path if it is a file here, else an address.

        Raises
        ------
        GenerationError
            If the registry doesn't have the generation.
        """
        run_id = self._version(loop, number).run_id
        with reported("reading a run"):
            root = self._tracking.client().get_run(run_id).info.artifact_uri
        parsed = urlparse(root)
        if parsed.scheme in {"", "file"}:
            return str(Path(unquote(parsed.path)) / name)
        return f"{root}/{name}"

    def numbers(self, loop: str) -> list[int]:
        """Numbers of all generations that the registry has, ascending."""
        if self._tracking.is_new():
            return []
        return sorted(int(version.tags["generation"]) for version in self._versions(loop))

    def _version(self, loop: str, number: int) -> Any:
        if not self._tracking.is_new():
            for version in self._versions(loop):
                if version.tags.get("generation") == str(number):
                    return version
        raise GenerationError(f"the registry has no generation {number} of loop {loop!r}")

    def _versions(self, loop: str) -> list[Any]:
        with reported("looking up generations"):
            found = self._tracking.client().search_model_versions(
                f"name='{registered_model_name(loop)}'"
            )
        return list(found)

    def _other_version(self, alias: str, loop: str, number: int) -> Any:
        """The model version of a generation that is to be more than the champion."""
        version = self._version(loop, number)
        if number == self.champion(loop):
            raise InvalidInputError(alias, f"generation {number} is the champion of {loop}")
        return version

    def _model(self, loop: str) -> Any:
        """The registered model; None if nothing was ever registered of the loop."""
        if self._tracking.is_new():
            return None
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        with reported("asking for the plan"):
            try:
                return self._tracking.client().get_registered_model(registered_model_name(loop))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def _number(self, name: str, version: str) -> int:
        with reported("asking for a generation's number"):
            return int(self._tracking.client().get_model_version(name, version).tags["generation"])

    def _broken_off(self, loop: str) -> list[str]:
        """Runs of generations that were never finished."""
        found = self._tracking.client().search_runs(
            [self._tracking.experiment(loop)],
            f"attributes.status = 'RUNNING' AND tags.`{_GENERATION_TAG}` LIKE '%'",
        )
        return [run.info.run_id for run in found]

    def _relieve(self, name: str, aliases: Mapping[str, object], champion: object) -> None:
        """Have a champion be neither canary nor shadow."""
        if str(aliases.get(CANARY)) == str(champion):
            self._drop_canary(name)
        if str(aliases.get(SHADOW)) == str(champion):
            self._tracking.client().delete_registered_model_alias(name, SHADOW)

    def _drop_canary(self, name: str) -> None:
        self._tracking.client().delete_registered_model_alias(name, CANARY)
        self._tracking.client().delete_registered_model_tag(name, SHARE_TAG)

    def _record(self, name: str, change: Change, what: str) -> None:
        time = datetime.fromtimestamp(change.ts / 1e6, tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        told = {"what": what, "by": change.by, "reason": change.reason}
        value = msgspec.json.encode(told).decode()
        self._tracking.client().set_registered_model_tag(name, f"{_CHANGE_TAG}{time}", value)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._tracking.client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _model_file(run_id: str) -> str:
    """The file that tells MLflow how to load a run's generation and what it can be asked."""
    from mlflow.models import Model  # noqa: PLC0415

    model = Model(artifact_path="", run_id=run_id, signature=signature())
    # By the format's documentation. MLflow's own function warns of its own type hints.
    model.add_flavor(
        "python_function",
        loader_module=served.__name__,
        data=_GENERATION,
        python_version=platform.python_version(),
    )
    return str(model.to_yaml())


def _read_change(key: str, value: str) -> Change:
    time = datetime.strptime(key.removeprefix(_CHANGE_TAG), "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    told = msgspec.json.decode(value, type=dict[str, str])
    return Change(ts=round(time.timestamp() * 1e6), **told)
