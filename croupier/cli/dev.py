"""Commands for developers: what a scorer, a sink or a test needs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from croupier.cli.options import JsonOption
from croupier.cli.output import Output
from croupier.eventlog.kafka.broker import Cluster
from croupier.policy.errors import ConfigError

__all__ = ("register",)

_DirOption = Annotated[Path, typer.Option("--dir", help="The cluster's folder.")]
_DIR = Path("croupier-kafka")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    kafka = typer.Typer(
        help="Apache Kafka on this machine, for development; needs Java, and Maven once.",
        no_args_is_help=True,
    )
    kafka.command()(start)
    kafka.command()(stop)
    kafka.command()(status)
    dev = typer.Typer(help="What development and tests need.", no_args_is_help=True)
    dev.add_typer(kafka, name="kafka")
    app.add_typer(dev, name="dev")


def start(
    folder: _DirOption = _DIR,
    nodes: Annotated[
        int | None, typer.Option(help="Of a new cluster: 1, which is the default, or 3.")
    ] = None,
    heap_mb: Annotated[
        int | None, typer.Option(min=128, help="Of a new cluster: most heap of a node, in MiB.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Start a cluster, and make it where there is none; what it holds is kept."""
    output = Output(json=json)
    if Cluster.exists(folder):
        cluster = Cluster(folder)
        _require_same(cluster, nodes)
    else:
        cluster = Cluster.create(folder, nodes=nodes or 1, heap_mb=heap_mb or 384)
    died = [state.node for state in cluster.states() if state.state == "died"]
    if not cluster.start():
        raise ConfigError("dir", f"the cluster in {cluster.folder} is running already")
    for node in died:
        output.remark(f"Node {node} had died, and was started again.")
    _show(cluster, output)


def stop(folder: _DirOption = _DIR, json: JsonOption = False) -> None:
    """Stop a cluster; what it holds is kept."""
    output = Output(json=json)
    cluster = Cluster(folder)
    stopped = cluster.stop()
    output.result(
        {"dir": str(cluster.folder), "stopped": stopped},
        lambda: output.remark(
            f"Stopped {len(stopped)} of {len(cluster.nodes)} nodes."
            if stopped
            else "Nothing was running."
        ),
    )


def status(folder: _DirOption = _DIR, json: JsonOption = False) -> None:
    """Show a cluster's nodes; exit code 1 unless all of them run."""
    output = Output(json=json)
    cluster = Cluster(folder)
    _show(cluster, output)
    raise typer.Exit(0 if all(each.state == "running" for each in cluster.states()) else 1)


def _require_same(cluster: Cluster, nodes: int | None) -> None:
    if nodes is not None and nodes != len(cluster.nodes):
        raise ConfigError(
            "nodes",
            f"expected {len(cluster.nodes)}, as the cluster in {cluster.folder} has, got {nodes}",
        )


def _show(cluster: Cluster, output: Output) -> None:
    states = cluster.states()
    facts = {
        "dir": str(cluster.folder),
        "kafka": cluster.kafka_version,
        "bootstrap_servers": cluster.bootstrap_servers,
        "nodes": states,
    }

    def show() -> None:
        output.table(
            f"Kafka {cluster.kafka_version} in {cluster.folder}",
            ["node", "address", "state", "process"],
            [[each.node, each.address, each.state, _number(each.pid)] for each in states],
        )
        servers = ", ".join(f'"{each}"' for each in cluster.bootstrap_servers)
        output.remark(f"log.kafka.bootstrap_servers = [{servers}]")

    output.result(facts, show)


def _number(pid: int | None) -> str | None:
    # Not a quantity: no separators.
    return None if pid is None else str(pid)
