"""The command line: ``croupier``."""
