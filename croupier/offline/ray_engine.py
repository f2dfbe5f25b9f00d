"""The batch side's work as tasks on a Ray cluster: the optional extra ``ray``."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from croupier.offline.engine import Engine, EngineError
from croupier.policy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ("RayEngine",)

SharedT = TypeVar("SharedT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Tasks on their way or waiting for their turn, to every one that is being done.
_AHEAD = 2
_PATIENCE_S = 10.0
_OBJECTS_BYTES = 512 * 2**20
# Ray reads these when it is imported. It is not to report usage to its makers, nor to write on
# stdout, where results go, which worker has died and how tasks are begun again.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}
# A task has one core; by itself, polars would start a thread for every core of the machine.
_ENVIRONMENT = {"POLARS_MAX_THREADS": "1"}


class RayEngine(Engine):
    """Calls functions as Ray tasks.

    Every node needs the same Croupier installed, and has to find the lake by the same path. Within
    a process that is connected to a cluster already, that one is used and stays connected.

    Parameters
    ----------
    address
        Of a running cluster; a cluster of this machine's cores is started, and ended by
        :meth:`close`, if None.
    cores
        Of the cluster that is started; all of this machine's if None.
    retries
        How often a task is begun again whose worker has died: one that takes more memory than
        there is would die for ever.

    Raises
    ------
    ConfigError
        If Ray isn't installed, or the cluster can't be reached.
    """

    def __init__(
        self, address: str | None = None, *, cores: int | None = None, retries: int = 4
    ) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray  # noqa: PLC0415 - takes a second or two
        except ImportError as error:
            raise ConfigError(
                "engine", "expected Ray to be installed for ray: pip install 'croupier[ray]'"
            ) from error
        if address is not None:
            _require_answer(address)
        self._ray: Any = ray
        self._retries = retries
        self._own = not ray.is_initialized()
        if self._own:
            self._connect(address, cores)

    def _connect(self, address: str | None, cores: int | None) -> None:
        started: dict[str, Any] = {}
        if address is None:
            started = {
                "num_cpus": cores,
                "include_dashboard": False,
                "object_store_memory": _OBJECTS_BYTES,
            }
        try:
            self._ray.init(
                address="local" if address is None else address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": _ENVIRONMENT},
                **started,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address or "this machine", error) from error

    @property
    def workers(self) -> int:
        """As many as the cluster has cores now, at least one."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def distributed(self) -> bool:
        """It is."""
        return True

    def map(
        self,
        function: Callable[[SharedT, ItemT], ResultT],
        items: Iterable[ItemT],
        shared: SharedT,
    ) -> Iterator[ResultT]:
        """Call a function for every item on some worker, see :meth:`Engine.map`."""
        task = self._ray.remote(max_retries=self._retries)(function)
        given = self._ray.put(shared)
        most = _AHEAD * self.workers
        under_way: deque[Any] = deque()
        try:
            for item in items:
                under_way.append(task.remote(given, item))
                if len(under_way) >= most:
                    yield self._result(under_way, function)
            while under_way:
                yield self._result(under_way, function)
        finally:
            for each in under_way:
                self._ray.cancel(each)

    def _result(self, under_way: deque[Any], function: Callable[..., ResultT]) -> ResultT:
        errors = self._ray.exceptions
        try:
            result: ResultT = self._ray.get(under_way.popleft())
        except errors.RayTaskError as error:
            # What the call has raised, without what Ray makes of it.
            raise error.cause from error
        except errors.RayError as error:
            raise EngineError(
                f"Ray could not do {function.__name__} in {self._retries + 1} attempts: {error}"
            ) from error
        return result

    def close(self) -> None:
        """Leave the cluster; one that was started for this is ended."""
        if self._own:
            self._ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens at once: Ray would try for minutes."""
    host, _, port = address.rpartition("//")[2].partition(":")
    if not port.isdecimal():
        # Not one of a machine's: Ray has names of its own, such as auto.
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError("ray-address", f"expected a Ray cluster at {address}: {error}")
