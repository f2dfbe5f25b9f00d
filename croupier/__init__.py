"""Croupier: self-hosted contextual-bandit decisions with exact propensities."""

__version__ = "0.1.0"
