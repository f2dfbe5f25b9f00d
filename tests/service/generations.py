"""Generations to serve: small, with weights that say which one they are."""

from __future__ import annotations

import numpy as np

from croupier.policy.encoding import EncoderConfig
from croupier.policy.exploration import Softmax
from croupier.policy.generation import Generation
from croupier.policy.oracle import VowpalWabbitConfig, make_oracle

BITS = 10


def generation(loop: str, number: int) -> Generation:
    """A policy that prefers other actions than the next one, and plays all of them."""
    oracle = make_oracle(VowpalWabbitConfig(encoder=EncoderConfig(bits=BITS)))
    oracle.weights_ = np.random.default_rng(number).normal(size=1 << BITS).astype(np.float32)
    return Generation(loop, number, Softmax(temperature=0.5, floor=0.01), oracle, None)
