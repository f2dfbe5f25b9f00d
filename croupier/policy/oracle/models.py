"""Oracles whose model is a file that another library reads, and that library scores with."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from croupier.policy.errors import GenerationError
from croupier.policy.oracle.encoded import EncodedOracle, not_fitted

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle.base import OracleConfigBase

__all__ = ("ModelOracle",)


class ModelOracle(EncodedOracle):
    """An oracle that serves what its model file holds, whether it was fitted here or loaded.

    Attributes
    ----------
    model_
        The file's content; None before :meth:`fit`.
    """

    file_name: ClassVar[str]

    def __init__(self, config: OracleConfigBase, *, random_state: int = 0) -> None:
        super().__init__(config, random_state=random_state)
        self.model_: bytes | None = None

    @abstractmethod
    def serve(self, model: bytes) -> None:
        """Make a model what is scored with.

        Raises
        ------
        GenerationError
            If it can't be used.
        """

    def write(self, directory: Path) -> None:
        """Write the model, and its SHA-256 beside it."""
        if self.model_ is None:
            raise not_fitted()
        (directory / self.file_name).write_bytes(self.model_)
        self._checksum(directory).write_text(hashlib.sha256(self.model_).hexdigest())

    def read(self, directory: Path) -> None:
        """Take over what :meth:`write` has written.

        The libraries that read models don't expect damage, and may end the process: nothing reaches
        them that isn't what was written.
        """
        model = (directory / self.file_name).read_bytes()
        if self._checksum(directory).read_text() != hashlib.sha256(model).hexdigest():
            raise GenerationError(f"{self.file_name} was altered after it was saved")
        self.serve(model)

    def _checksum(self, directory: Path) -> Path:
        return directory / f"{self.file_name}.sha256"
