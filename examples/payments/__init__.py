"""Card payments whose truth is known, to study how policies behave over many generations."""
