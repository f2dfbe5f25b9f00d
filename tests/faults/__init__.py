"""Faults under load: whatever dies, what was acknowledged is in the lake, once."""
