"""Whether what successive generations of a loop earned goes up and down, as each of them ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from croupier.offline.oscillation import (
    LEAST_GENERATIONS,
    OscillationTest,
    gaussian_noise,
    oscillation_test,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from croupier.offline.realised import Realised

__all__ = ("LOOKED_BACK", "latest_swings", "swings_so_far")

LOOKED_BACK = 15
"""Latest generations that are tested together."""

# Of fewer decisions, a mean is too far from normal.
_SERVED = 30


def latest_swings(found: Mapping[int, Realised]) -> OscillationTest | None:
    """Test the latest generations that served; None if there are too few, or one has no error.

    Parameters
    ----------
    found
        What every generation has come to. Those that made fewer than 30 decisions don't count.
    """
    tests = swings_so_far(found, latest=1)
    return next(iter(tests.values()), None)


def swings_so_far(found: Mapping[int, Realised], *, latest: int) -> dict[int, OscillationTest]:
    """Test, for each of the latest generations that served, it and those before it.

    Parameters
    ----------
    found
        As in :func:`latest_swings`.
    latest
        Of how many generations, at least 1.

    Returns
    -------
    dict
        By the last generation of those that were tested together, :data:`LOOKED_BACK` at most. A
        generation is left out if it and those before it are too few, or one has no error.
    """
    served = {number: found[number].moments for number in sorted(found)}
    told = [
        (number, each.mean, each.error()) for number, each in served.items() if each.rows >= _SERVED
    ]
    tests = {}
    for end in range(max(LEAST_GENERATIONS, len(told) - latest + 1), len(told) + 1):
        together = told[max(0, end - LOOKED_BACK) : end]
        errors = [error for _, _, error in together if error]
        if len(errors) == len(together):
            tests[told[end - 1][0]] = oscillation_test(
                [mean for _, mean, _ in together], gaussian_noise(errors)
            )
    return tests
