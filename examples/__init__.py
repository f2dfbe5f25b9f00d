"""Examples that are programs."""
