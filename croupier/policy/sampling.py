"""Drawing an action: a pure function of the pmf and a draw key that can be replayed anywhere."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("draw", "draw_key", "uniform_of_key")

_KEY_DIGEST_BYTES = 8
_PERSON = b"croupier-draw-1"
_FEW = 100


def draw_key(
    loop: str,
    generation: int,
    decision_id: str,
    slot: str | None = None,
    *,
    secret: bytes = b"",
) -> str:
    """Key of one draw: a keyed hash of everything that names it, as 16 hexadecimal digits.

    Different decisions get independent keys, also those of one user; the same decision under the
    same generation gets the same key, so that a retried request gets the same answer. The parts
    are length-prefixed so that no two different draws share an input. Who chooses decision ids and
    knows the secret could choose draws; the key that is logged is enough to replay the draw.

    Parameters
    ----------
    loop, generation, decision_id, slot
        What is drawn for.
    secret
        At most 64 bytes that only the scorers know.

    Raises
    ------
    InvalidInputError
        If a part is not valid Unicode.
    """
    parts = (decision_id,) if slot is None else (decision_id, slot)
    try:
        digest = _begun(loop, generation, secret).copy()
        for part in parts:
            digest.update(_prefixed(part))
    except UnicodeEncodeError as error:
        raise InvalidInputError("draw key", f"expected valid Unicode: {error.reason}") from error
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _begun(loop: str, generation: int, secret: bytes) -> hashlib.blake2b:
    """The hash of what all draws of a generation have in common."""
    material = _prefixed(loop) + _prefixed(str(generation))
    return hashlib.blake2b(material, digest_size=_KEY_DIGEST_BYTES, key=secret, person=_PERSON)


def _prefixed(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(4, "big") + encoded


def uniform_of_key(key: str) -> float:
    """Number in [0, 1) that a draw key stands for: its top 53 bits, exactly."""
    return (int(key, 16) >> 11) * 2.0**-53


def draw(pmf: NDArray[np.float64], key: str) -> int:
    """Index drawn from a pmf by inverting its cumulative distribution at the key's number.

    An entry of probability 0 is never drawn. The cumulative sum is scaled to end at exactly 1, so
    that the probability of every index is its pmf entry up to rounding (below 1e-15).
    """
    number = uniform_of_key(key)
    if pmf.size <= _FEW:
        # The same sums, without NumPy, whose calls cost more than a few numbers do.
        sums = list(accumulate(pmf.tolist()))
        index = bisect_right(sums, number * sums[-1])
    else:
        cumulative = pmf.cumsum()
        index = int(cumulative.searchsorted(number * cumulative[-1], side="right"))
    if index < pmf.size and pmf[index] > 0.0:
        return index
    # Rounding of the product can reach the last sum itself; the last possible action owns it.
    return int(pmf.nonzero()[0][-1])
