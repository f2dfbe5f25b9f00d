"""Settings of loops: what was changed over Personalizer's API, put over the configuration.

``<root>/<loop>.json`` holds what was set of a loop, and nothing else: what was never set is as the
configuration file and the environment have it. Files are replaced in one step. The control plane
writes them; scorers look at them again and again, batch commands when they start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from croupier.policy.errors import ConfigError
from croupier.policy.events import LearningMode
from croupier.policy.exploration import Exploration
from croupier.policy.loop import Aggregation
from croupier.policy.oracle import OracleConfig
from croupier.policy.traffic import UniformSlice
from croupier.service.serving import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.loop import LoopConfig

__all__ = ("LoopSettings", "SettingsDirectory")


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was set of a loop; what was not is unset.

    Attributes
    ----------
    edited_us, by
        When it was last changed, in microseconds since the Unix epoch, and by which key.
    attribution_window, default_reward, aggregation, learning_mode, model_export_frequency
        See :class:`~croupier.policy.loop.LoopConfig`.
    log_retention
        The same; None keeps everything.
    uniform_share
        Share of uniform play, in [0, 1], at all times and instead of the configured slices.
    exploration, oracle
        Of the generations that are trained from now on.
    policy_name, policy_arguments
        What the two were called by whoever set them.
    """

    edited_us: int
    by: str
    attribution_window: str | UnsetType = UNSET
    default_reward: float | UnsetType = UNSET
    aggregation: Aggregation | UnsetType = UNSET
    learning_mode: LearningMode | UnsetType = UNSET
    model_export_frequency: str | UnsetType = UNSET
    log_retention: str | UnsetType | None = UNSET
    uniform_share: float | UnsetType = UNSET
    exploration: Exploration | UnsetType = UNSET
    oracle: OracleConfig | UnsetType = UNSET
    policy_name: str | UnsetType = UNSET
    policy_arguments: str | UnsetType = UNSET

    def over(self, config: LoopConfig) -> LoopConfig:
        """The configuration with these settings put over it.

        Raises
        ------
        ValueError
            If they don't go together.
        """
        changes = {
            name: value for name in _OF_THE_LOOP if (value := getattr(self, name)) is not UNSET
        }
        if self.uniform_share is not UNSET:
            share = self.uniform_share
            changes["uniform_slices"] = (UniformSlice(share=share),) if share else ()
        return msgspec.structs.replace(config, **changes)

    def names(self) -> list[str]:
        """Names of what is set."""
        return [
            name for name in (*_OF_THE_LOOP, "uniform_share") if getattr(self, name) is not UNSET
        ]


_OF_THE_LOOP = (
    "attribution_window",
    "default_reward",
    "aggregation",
    "learning_mode",
    "model_export_frequency",
    "log_retention",
    "exploration",
    "oracle",
)


class SettingsDirectory:
    """The settings of all loops, below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, loop: str) -> LoopSettings | None:
        """What was set of a loop; None if nothing ever was.

        Raises
        ------
        ConfigError
            If the file can't be read.
        """
        path = self.root / f"{loop}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=LoopSettings)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"loops.{loop}", f"expected its settings in {path}, which can't be read: {error}"
            ) from error

    def write(self, loop: str, settings: LoopSettings) -> None:
        """Put settings in the place of those that were there."""
        replace_file(self.root / f"{loop}.json", msgspec.json.encode(settings), durable=True)

    def over(self, loop: str, config: LoopConfig) -> LoopConfig:
        """A loop's configuration with its settings put over it.

        Raises
        ------
        ConfigError
            If the file can't be read, or what was set doesn't go with the configuration.
        """
        settings = self.read(loop)
        if settings is None:
            return config
        try:
            return settings.over(config)
        except ValueError as error:
            raise ConfigError(
                f"loops.{loop}",
                f"the settings in {self.root / loop}.json don't go with it: {error}",
            ) from error
