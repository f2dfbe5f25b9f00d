"""Subsampled logging: which decisions are written to the log, where not all of them are.

Whether a decision is kept is decided by a hash of its own, so that it depends neither on what was
drawn nor on what came of it: a kept row with keep probability k stands for 1 / k decisions in
whatever is added up over the log.
"""

from __future__ import annotations

import hashlib

__all__ = ("is_kept",)

_DIGEST_BYTES = 8
_PERSON = b"croupier-keep-1"
_RANGE = 2.0 ** (8 * _DIGEST_BYTES)


def is_kept(loop: str, decision_id: str, keep_prob: float, *, secret: bytes = b"") -> bool:
    """Whether a decision is logged: true for a share `keep_prob` of all ids.

    All draws of one request are kept or dropped together, and so is a request that is sent again,
    also under another generation. The hash has nothing to do with those of the draws and of the
    folds. Who is kept with some probability is kept with any larger one too.

    Parameters
    ----------
    loop, decision_id
        Which decision.
    keep_prob
        In (0, 1], see :class:`~croupier.policy.loop.LoopConfig`.
    secret
        That of the draws: who knows it could choose ids that are never logged.
    """
    if keep_prob >= 1.0:
        return True
    name = loop.encode()
    # With its length before it, so that no two loops and ids share an input.
    material = len(name).to_bytes(4, "big") + name + decision_id.encode()
    digest = hashlib.blake2b(
        material, digest_size=_DIGEST_BYTES, key=secret, person=_PERSON
    ).digest()
    # A float times a power of two is exact, and so is comparing it with an integer.
    return int.from_bytes(digest, "big") < keep_prob * _RANGE
