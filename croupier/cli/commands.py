"""All commands of ``croupier``."""

from __future__ import annotations

import typer

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

__all__ = ("app",)

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
