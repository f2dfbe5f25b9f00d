"""``croupier``: one command for everything."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import typer
from typer.exceptions import TyperException

from croupier import __version__
from croupier.cli import (
    alerts,
    batch,
    configuration,
    data,
    dev,
    drift,
    evaluate,
    frontier,
    inspect,
    lake,
    log,
    nightly,
    online,
    pairs,
    plan,
    promotion,
    simulate,
    study,
    train,
    tune,
)
from croupier.policy.errors import CroupierError

__all__ = ("app", "main")

app = typer.Typer(
    name="croupier",
    help="Contextual-bandit decisions with exact propensities, retrained and proven nightly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    online,
    alerts,
    plan,
    promotion,
    batch,
    evaluate,
    nightly,
    train,
    tune,
    drift,
    study,
    lake,
    log,
    inspect,
    simulate,
    pairs,
    frontier,
    configuration,
    data,
    dev,
):
    module.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line; a mistake of the caller's is one line on stderr and exit code 2."""
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
