"""The few layers that the networks are made of, over any number of leading axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    import numpy as np

__all__ = ("Dense", "Perceptron", "Recurrent", "Scaling")


class Scaling(eqx.Module):
    """Columns to mean 0 and standard deviation 1; constants, which no gradient moves.

    Attributes
    ----------
    mean, deviation
        Of each column, shape (F,).
    """

    mean: jax.Array
    deviation: jax.Array

    @classmethod
    def of(cls, rows: jax.Array) -> Scaling:
        """The scaling of rows, shape (..., F); a column that never changes is only centred."""
        axes = tuple(range(rows.ndim - 1))
        deviation = jnp.std(rows, axis=axes)
        return cls(
            mean=jnp.mean(rows, axis=axes), deviation=jnp.where(deviation > 1e-6, deviation, 1.0)
        )

    def __call__(self, rows: jax.Array) -> jax.Array:
        """Scaled rows, of the same shape."""
        mean, deviation = jax.lax.stop_gradient((self.mean, self.deviation))
        return (rows - mean) / deviation


class Dense(eqx.Module):
    """``x W + b``."""

    weight: jax.Array
    bias: jax.Array

    def __init__(
        self, inputs: int, outputs: int, rng: np.random.Generator, *, gain: float = 1.0
    ) -> None:
        # It keeps the scale of what comes in, so the gain alone decides.
        self.weight = _weights(rng, inputs, outputs, gain)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape (..., inputs) to (..., outputs)."""
        return x @ self.weight + self.bias


class Perceptron(eqx.Module):
    """Dense layers with tanh after each but the last."""

    layers: tuple[Dense, ...]

    def __init__(
        self, sizes: tuple[int, ...], rng: np.random.Generator, *, gain: float = 1.0
    ) -> None:
        gains = [math.sqrt(2.0)] * (len(sizes) - 2) + [gain]
        self.layers = tuple(
            Dense(inputs, outputs, rng, gain=scale)
            for inputs, outputs, scale in zip(sizes[:-1], sizes[1:], gains, strict=True)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape (..., sizes[0]) to (..., sizes[-1])."""
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


class Recurrent(eqx.Module):
    """A gated recurrent unit (Cho et al., 2014).

    ``z, r = sigmoid(W x + U h + b), n = tanh(W x + r (U h) + b), h <- z h + (1 - z) n``.
    The input's share of all steps is one product, so only the state's share is left for the loop.
    """

    inputs: Dense
    weight: jax.Array

    def __init__(self, inputs: int, size: int, rng: np.random.Generator) -> None:
        self.inputs = Dense(inputs, 3 * size, rng)
        self.weight = _weights(rng, size, 3 * size, 1.0)

    @property
    def size(self) -> int:
        """Numbers in the state."""
        return int(self.weight.shape[0])

    def step(self, state: jax.Array, projected: jax.Array) -> jax.Array:
        """The next state, of a state (..., H) and the inputs' share (..., 3 H) of a step."""
        own = state @ self.weight
        update_in, reset_in, new_in = jnp.split(projected, 3, axis=-1)
        update_own, reset_own, new_own = jnp.split(own, 3, axis=-1)
        update = jax.nn.sigmoid(update_in + update_own)
        new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_own) * new_own)
        return update * state + (1.0 - update) * new

    def __call__(self, x: jax.Array, state: jax.Array) -> jax.Array:
        """States after each step, of inputs (T, ..., F) and the state before: shape (T, ..., H)."""

        def step(before: jax.Array, projected: jax.Array) -> tuple[jax.Array, jax.Array]:
            after = self.step(before, projected)
            return after, after

        return jax.lax.scan(step, state, self.inputs(x))[1]


def _weights(rng: np.random.Generator, inputs: int, outputs: int, gain: float) -> jax.Array:
    drawn = rng.standard_normal((inputs, outputs)) * gain / math.sqrt(inputs)
    return jnp.asarray(drawn, jnp.float32)
