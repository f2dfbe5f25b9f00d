"""The durable append-only log behind one small interface, and its group commit."""
