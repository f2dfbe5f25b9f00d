"""Run the command line: ``python -m croupier``."""

from croupier.cli.main import main

if __name__ == "__main__":
    main()
