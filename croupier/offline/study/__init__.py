"""Studies: what happens over many generations, in environments whose truth is known."""

from __future__ import annotations

__all__ = ()
