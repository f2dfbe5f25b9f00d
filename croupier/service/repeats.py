"""Repeats: a request that is sent again under the caller's own id gets the answer it got before."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("Claim", "Repeats", "fingerprint")

_T = TypeVar("_T")

_DIGEST_BYTES = 16
_canonical = msgspec.json.Encoder(order="deterministic")


class Repeats:
    """Answers to the latest decisions that had an id of the caller's own.

    A client that got no answer sends its request again. If the first one was decided after all, it
    is not decided or logged a second time, whatever generation serves by now; if it is still being
    decided, both wait for the same answer. What could not be answered is forgotten at once. Past
    the latest `capacity` ids the draw is still the same under the same plan, and the lake drops the
    second record.

    Not thread-safe: it belongs to an event loop.

    Parameters
    ----------
    capacity
        Answers to remember, at least 0; 0 remembers none.
    capacity_bytes
        Of the requests whose answers are remembered: an answer is as long as its request, more or
        less, and a few long ones must not take the room of all.
    """

    def __init__(self, capacity: int, capacity_bytes: int = 67_108_864) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._asked: OrderedDict[tuple[str, str], _Asked] = OrderedDict()

    @property
    def capacity(self) -> int:
        """How many answers are remembered."""
        return self._capacity

    def __len__(self) -> int:
        return len(self._asked)

    async def once(
        self,
        loop: str,
        decision_id: str | None,
        request: Any,
        answer: Callable[[], Awaitable[_T]],
        *,
        size: int = 0,
    ) -> _T:
        """Answer a request, unless it was answered before.

        Parameters
        ----------
        loop, decision_id
            Of the request; without an id of the caller's own there is nothing to recognize.
        request
            A struct of the route's own type; two requests are the same if they are equal in
            canonical JSON.
        answer
            Decides and logs.
        size
            Of the request, in bytes.

        Raises
        ------
        InvalidInputError
            If the id was used for another request. What `answer` raises, it raises too.
        """
        if decision_id is None or self._capacity == 0:
            return await answer()
        print_ = fingerprint(request)
        claim = self.claim(loop, decision_id, print_, size)
        if claim is None:
            asked = self._asked[loop, decision_id]
            if asked.fingerprint() != print_:
                raise InvalidInputError(
                    "decision_id", f"expected one of its own for every request, got {decision_id!r}"
                )
            # Shielded: a client that goes away must not take the others' answer with it.
            found: _T = await asyncio.shield(asked.answer)
            return found
        try:
            made = await answer()
        except BaseException as error:
            claim.drop(error)
            raise
        claim.settle(made)
        return made

    def claim(
        self, loop: str, decision_id: str, print_: bytes | Callable[[], bytes], size: int
    ) -> Claim | None:
        """Take it on to answer a request; None if its id was used before.

        Parameters
        ----------
        loop, decision_id
            Of the request.
        print_
            The request's :func:`fingerprint`, or how to get it, should it be asked for.
        size
            Of its body, in bytes.
        """
        if (loop, decision_id) in self._asked:
            return None
        asked = _Asked(print_, asyncio.get_running_loop().create_future(), size)
        self._asked[loop, decision_id] = asked
        self._bytes += size
        return Claim(self, (loop, decision_id), asked)

    def forget(self, key: tuple[str, str], asked: _Asked) -> None:
        """Forget a request that could not be answered, unless it was forgotten before."""
        if self._asked.get(key) is asked:
            del self._asked[key]
            self._bytes -= asked.size

    def trim(self) -> None:
        """Forget the oldest requests that are too many."""
        while len(self._asked) > self._capacity or self._bytes > self._capacity_bytes:
            _, oldest = self._asked.popitem(last=False)
            self._bytes -= oldest.size


class Claim:
    """A request that somebody is answering; either `settle` or `drop` has to follow."""

    __slots__ = ("_asked", "_key", "_repeats")

    def __init__(self, repeats: Repeats, key: tuple[str, str], asked: _Asked) -> None:
        self._repeats = repeats
        self._key = key
        self._asked = asked

    def settle(self, answer: Any) -> None:
        """Keep the answer for when the request comes again."""
        self._asked.answer.set_result(answer)
        self._repeats.trim()

    def drop(self, error: BaseException) -> None:
        """Forget the request, and tell the error to those who wait for the answer too."""
        self._repeats.forget(self._key, self._asked)
        if isinstance(error, Exception):
            self._asked.answer.set_exception(error)
            # Looked at here, since there may be nobody else who waits for it.
            self._asked.answer.exception()
        else:
            self._asked.answer.cancel()


class _Asked:
    """A request by its fingerprint, and the answer that it got or is to get."""

    __slots__ = ("_fingerprint", "answer", "size")

    def __init__(
        self, print_: bytes | Callable[[], bytes], answer: asyncio.Future[Any], size: int
    ) -> None:
        self._fingerprint = print_
        self.answer = answer
        self.size = size

    def fingerprint(self) -> bytes:
        if not isinstance(self._fingerprint, bytes):
            self._fingerprint = self._fingerprint()
        return self._fingerprint


def fingerprint(request: Any) -> bytes:
    """Hash of a request and of its type, which stands for the route."""
    described = type(request).__name__.encode() + b"\0" + _canonical.encode(request)
    return hashlib.blake2b(described, digest_size=_DIGEST_BYTES).digest()
