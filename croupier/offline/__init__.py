"""Sink, lake, join, retraining, off-policy evaluation, gate and audits."""
