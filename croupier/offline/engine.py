"""Where the work of the batch side is done: in this process, or by the workers of a cluster.

The work is written once, as functions of what all tasks share and of one item, and an engine calls
them. A task may be begun again, if the worker that had it has died, so it must do no harm to be
done twice: it writes nothing but files of its own, each put in its place by a rename, or commits
against what it has seen. What becomes of all the results, such as the one commit of a join, is up
to whoever has asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from croupier.policy.errors import ConfigError, CroupierError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

__all__ = ("LOCAL", "Engine", "EngineError", "EngineName", "LocalEngine", "open_engine")

EngineName: TypeAlias = Literal["local", "ray"]
"""``local``: in this process; ``ray``: tasks on a Ray cluster."""

SharedT = TypeVar("SharedT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class EngineError(CroupierError):
    """The cluster could not do a task, however often it tried."""


class Engine(ABC):
    """Calls functions, wherever it does so."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many tasks are done at the same time."""

    @property
    @abstractmethod
    def distributed(self) -> bool:
        """Whether tasks are done by other processes, to which everything has to be brought."""

    @abstractmethod
    def map(
        self,
        function: Callable[[SharedT, ItemT], ResultT],
        items: Iterable[ItemT],
        shared: SharedT,
    ) -> Iterator[ResultT]:
        """Call a function for every item; gives results in the order of the items.

        No more items are taken, and no more results held, than keep the workers busy.

        Parameters
        ----------
        function
            Of a module, so that other processes find it by its name; may be called several times
            for one item.
        items
            What each call is for.
        shared
            What all calls are given. Files that it names have to be found by the same path from
            wherever tasks are done.

        Raises
        ------
        EngineError
            If workers have died over and over at the same item.
        Exception
            Whatever a call has raised; none is begun after that.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class LocalEngine(Engine):
    """Calls functions itself, one after the other, when their result is asked for."""

    @property
    def workers(self) -> int:
        """One."""
        return 1

    @property
    def distributed(self) -> bool:
        """It is not."""
        return False

    def map(
        self,
        function: Callable[[SharedT, ItemT], ResultT],
        items: Iterable[ItemT],
        shared: SharedT,
    ) -> Iterator[ResultT]:
        """Call a function for every item, see :meth:`Engine.map`."""
        for item in items:
            yield function(shared, item)


LOCAL = LocalEngine()
"""What everything is done with unless told otherwise."""


def open_engine(name: EngineName, *, address: str | None = None) -> Engine:
    """An engine by its name; close it.

    Parameters
    ----------
    name
        Which one.
    address
        Of the Ray cluster; one is started on this machine, and ended by closing, if None.

    Raises
    ------
    ConfigError
        If Ray is not installed, the cluster isn't found, or an address is given for no cluster.
    """
    if name == "local":
        if address is not None:
            raise ConfigError("ray-address", "expected one with --engine ray only")
        return LOCAL
    # Loaded by those alone who use it: Ray takes seconds, and need not be installed.
    from croupier.offline.ray_engine import RayEngine  # noqa: PLC0415

    return RayEngine(address)
