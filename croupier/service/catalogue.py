"""Reading decision requests whose actions come from a catalogue: each action is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from croupier.policy.decision import DecisionRequest, check_id
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import Action, Features, KeptAction
from croupier.policy.kernel import KERNEL
from croupier.service.api import DecideRequest
from croupier.service.refusals import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Catalogue",)

_MOST_BYTES = 32 * 2**20
_OVERHEAD = 500
"""Bytes that an action takes besides its text, roughly; what is kept of it is as large again."""


class Catalogue:
    """Reads the bodies of ``decide`` requests, and keeps the actions that it has met.

    An action is known by its text: the same bytes are the same action, with the same encoding, and
    neither is worked out again. Those that are never met again cost a little to keep; when there
    are too many, all are forgotten.

    Parameters
    ----------
    most_bytes
        How much memory the actions may take, roughly.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._known: dict[bytes, KeptAction] = {}
        self._raw_decoder = msgspec.json.Decoder(_RawRequest)
        self._action_decoder = msgspec.json.Decoder(KeptAction)
        self._decoder = msgspec.json.Decoder(DecideRequest)

    def __len__(self) -> int:
        return len(self._known)

    def read(self, body: bytes) -> DecisionRequest:
        """Read a body.

        Raises
        ------
        Refusal
            Naming the field and what was expected.
        """
        try:
            raw = self._raw_decoder.decode(body)
            return _request(raw, self._actions(raw.actions))
        except (msgspec.MsgspecError, InvalidInputError, ValueError, RecursionError):
            # Whatever it is, it has to be named as it is in the whole.
            whole: DecideRequest = decode(self._decoder, body)
            return _request(whole, whole.actions)

    def _actions(self, texts: list[msgspec.Raw]) -> list[Action]:
        known = self._known
        if KERNEL is not None:
            found = KERNEL.look_up(known, texts)
        else:
            found = [known.get(bytes(text)) for text in texts]
        if None not in found:
            return found  # type: ignore[return-value]  # mypy doesn't see that none is None
        return [
            self._met(bytes(text)) if action is None else action
            for text, action in zip(texts, found, strict=True)
        ]

    def _met(self, text: bytes) -> KeptAction:
        """Read an action, and keep it."""
        action = self._action_decoder.decode(text)
        check_id("id", action.id)
        room = 3 * len(text) + _OVERHEAD
        if self._bytes + room > self._most_bytes:
            self._known.clear()
            self._bytes = 0
        if room <= self._most_bytes:
            self._known[text] = action.spelt()
            self._bytes += room
        return action


class _RawRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`DecideRequest` with its actions as they were sent."""

    actions: list[msgspec.Raw]
    context: Features = {}
    decision_id: str | None = None
    excluded: list[str] = []
    baseline: str | None = None
    deferred: bool = False
    audit: Features = {}
    session: str | None = None


def _request(found: _RawRequest | DecideRequest, actions: Sequence[Action]) -> DecisionRequest:
    return DecisionRequest(
        actions=actions,  # type: ignore[arg-type]  # a list of actions that is only read
        context=found.context,
        decision_id=found.decision_id,
        excluded=found.excluded,
        baseline=found.baseline,
        deferred=found.deferred,
        audit=found.audit,
        session=found.session,
    )
