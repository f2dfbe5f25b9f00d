"""Fairness audits of logs and of generations."""
