"""Which decisions are kept: at the rate that is said, by the id alone, whatever is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from croupier.offline.join import fold_of
from croupier.policy.keeping import is_kept
from croupier.policy.sampling import draw_key, uniform_of_key

IDS = [f"visit-{number}" for number in range(40_000)]
SECRET = b"0123456789abcdef"
FALSE_ALARM = 1e-6

PROBABILITIES = st.floats(1e-6, 1.0)
SECRETS = st.binary(max_size=64)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def kept(keep_prob: float, loop: str = "shop", secret: bytes = SECRET) -> np.ndarray:
    return np.array([is_kept(loop, each, keep_prob, secret=secret) for each in IDS])


@pytest.mark.parametrize("keep_prob", [0.001, 0.2, 0.3, 0.95])
def test_the_share_is_the_one_that_is_said(keep_prob: float) -> None:
    """Exact binomial test of 40,000 ids; false alarm: 1e-6 each, with ids that are fixed."""
    found = stats.binomtest(int(kept(keep_prob).sum()), len(IDS), keep_prob)
    assert found.pvalue > FALSE_ALARM


@pytest.mark.parametrize("slot", [None, "0"])
@pytest.mark.parametrize("generation", [0, 7])
def test_it_has_nothing_to_do_with_the_draw(generation: int, slot: str | None) -> None:
    """Chi-squared test of kept or not against the tenth that the draw's number falls into.

    False alarm: 1e-6 each. The draws' numbers of those that are kept are uniform, too.
    """
    numbers = np.array(
        [uniform_of_key(draw_key("shop", generation, each, slot, secret=SECRET)) for each in IDS]
    )
    assert independent(kept(0.3), (10 * numbers).astype(int))
    assert stats.kstest(numbers[kept(0.3)], "uniform").pvalue > FALSE_ALARM


def test_nor_with_the_fold_other_loops_or_other_secrets() -> None:
    """Chi-squared tests as above; false alarm: 1e-6 each."""
    here = kept(0.3)
    assert independent(here, np.array([fold_of(each) // 100 for each in IDS]))
    assert independent(here, kept(0.3, loop="mail").astype(int))
    assert independent(here, kept(0.3, secret=b"").astype(int))
    # The test finds what depends: these are the same ids.
    assert not independent(here, kept(0.4).astype(int))


def independent(here: np.ndarray, groups: np.ndarray) -> bool:
    table = [np.bincount(groups[here == each], minlength=groups.max() + 1) for each in (0, 1)]
    return bool(stats.chi2_contingency(np.array(table)).pvalue > FALSE_ALARM)


@given(NAMES, NAMES, PROBABILITIES, PROBABILITIES, SECRETS)
def test_who_is_kept_is_kept_with_any_larger_probability(
    loop: str, decision_id: str, one: float, other: float, secret: bytes
) -> None:
    low, high = sorted([one, other])
    assert is_kept(loop, decision_id, low, secret=secret) <= is_kept(
        loop, decision_id, high, secret=secret
    )


@given(NAMES, NAMES, SECRETS)
def test_all_are_kept_with_certainty(loop: str, decision_id: str, secret: bytes) -> None:
    assert is_kept(loop, decision_id, 1.0, secret=secret)


def test_it_never_changes() -> None:
    """A scorer of a later version must not keep others, nor one on another machine."""
    shown = "".join("01"[is_kept("shop", each, 0.5, secret=SECRET)] for each in IDS[:32])
    assert shown == "10101100100100011010011000010100"
    # No two names share an input.
    differ = [is_kept("ab", f"c{n}", 0.5) != is_kept("a", f"bc{n}", 0.5) for n in range(64)]
    assert any(differ)
