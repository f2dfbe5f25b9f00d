"""``croupier``: one command for everything."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from croupier.policy.errors import CroupierError

__all__ = ("main",)


def main() -> None:
    """Run the command line; a mistake of the caller's is one line on stderr and exit code 2."""
    # Processes that a command starts import this module once more, and need no commands.
    from typer.exceptions import TyperException  # noqa: PLC0415

    from croupier.cli.commands import app  # noqa: PLC0415

    # Neither library is to report usage to its makers, from any command.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="WARNING")
    logging.getLogger("croupier").setLevel("INFO")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except TyperException as error:
        _fail(error.format_message())
    except CroupierError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.close()
        sys.exit(0)


def _fail(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
