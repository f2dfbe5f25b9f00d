"""The control plane of Personalizer's API: a process of its own, beside the scorer."""
