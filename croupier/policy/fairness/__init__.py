"""Fairness between individuals: who judges how alike two decisions are, and what a violation is."""
