"""The optional extra: is it there, and how its processes share a machine; imports none of it."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from croupier.policy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("has_jax", "prepare_jax", "require_jax")

_NEEDED = ("jax", "equinox", "optax")


def has_jax() -> bool:
    """Whether JAX, Equinox and Optax are installed."""
    return not _missing()


def require_jax(field: str) -> None:
    """Refuse to go on without the optional extra.

    Parameters
    ----------
    field
        What was asked for that needs it.

    Raises
    ------
    ConfigError
        If JAX, Equinox or Optax isn't installed.
    """
    missing = _missing()
    if missing:
        raise ConfigError(
            field,
            f"expected {', '.join(missing)} to be installed: pip install 'croupier[sim2rec]'",
        )


def prepare_jax(directory: Path) -> None:
    """Have JAX keep what it compiles, and use one thread; to be called before it is imported.

    Every process is one of several that share the machine. The same program is run for all seeds,
    and takes about as long to compile as to run.
    """
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))


def _missing() -> list[str]:
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]
