"""``croupier simulate log``: from a log to simulators, a policy, and what it is worth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from croupier.cli.options import ConfigOption, DataDirOption, JsonOption, Session
from croupier.cli.output import Output, interval, write_json
from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.jax_extra import require_jax
from croupier.sim2rec.log_figure import draw_log
from croupier.sim2rec.log_runs import LoggedLoop, policy_folder, run_from_log
from croupier.sim2rec.log_study import LogStudy, summarise_log
from croupier.sim2rec.log_study_config import BASE, LOG_BUDGETS, VARIANTS

if TYPE_CHECKING:
    from croupier.offline.study.oscillation import Mean
    from croupier.sim2rec.log_study import Difference, SessionEstimate

__all__ = ("log",)

_SEEDS: Final = 3


def log(
    loop: Annotated[
        str | None,
        typer.Option(help="Learn from the log of this loop, instead of a hidden population's."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Populations with their logs; with --loop: trainings.")
    ] = _SEEDS,
    budget: Annotated[
        str, typer.Option(help=f"How long they are, {' or '.join(LOG_BUDGETS)}.")
    ] = "reduced",
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="Also turn each switch of the gap's handling, one by one."),
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Where runs, logs, models, policies, table and figure are written.")
    ] = Path("log-study"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each processor unless given.")
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Learn user simulators from a log, train a policy in them, and say what it is worth.

    Without --loop: a bandit serves a hidden population, the policy is learned from its log, and
    fresh users tell what it is truly worth, beside what simulators and log say. What was stopped
    goes on where it was.
    """
    if budget not in LOG_BUDGETS:
        raise InvalidInputError(
            "budget", f"expected one of {', '.join(LOG_BUDGETS)}, got {budget!r}"
        )
    if ablate and loop is not None:
        raise InvalidInputError("ablate", "expected it without --loop, whose users nobody can ask")
    study_config, logged, shown = LOG_BUDGETS[budget], None, Output(json=json)
    if loop is not None:
        session = Session.open(config, data_dir, json=json)
        shown, logged = session.output, _logged(session, loop)
        study_config = study_config.for_loop()
    require_jax("simulate")
    with shown.progress("seeds") as progress:
        runs = run_from_log(
            study_config,
            range(seeds),
            directory=output,
            jobs=jobs or os.cpu_count() or 1,
            loop=logged,
            variants=[each.name for each in VARIANTS] if ablate else [BASE.name],
            progress=progress,
        )
    study = summarise_log(runs)
    draw_log(study).savefig(output / "log.png", dpi=150)
    write_json(output / "log.json", study)
    shown.result(study, lambda: _show(shown, study))
    shown.remark(f"runs are in {output / 'runs'}, the figure is {output / 'log.png'}")
    if loop is not None:
        first = policy_folder(output, runs.row(0, named=True))
        shown.remark(f"make a challenger of it: croupier simulate register {first} --loop {loop}")


def _logged(session: Session, loop: str) -> LoggedLoop:
    config = session.config.loop(loop)
    if config.sessions is None:
        raise InvalidInputError("loop", f"expected one with a section sessions, got {loop!r}")
    if not config.sessions.state:
        raise InvalidInputError("sessions.state", "expected at least one number that is observed")
    return LoggedLoop(
        lake=str(session.paths.lake),
        name=loop,
        config=config,
        version=session.lake.version("interactions"),
    )


def _show(shown: Output, study: LogStudy) -> None:
    shown.table(
        f"Simulators of {study.sessions - study.judges:,.0f} sessions, {study.seeds} seeds",
        ["error on users held out", "simulators", "mean of the action"],
        [
            ["next reward, root mean square", _told(study.rmse, 2), _told(study.naive_rmse, 2)],
            [
                "reward of a roll-out, root mean square",
                _told(study.rolled_rmse, 2),
                _told(study.rolled_naive_rmse, 2),
            ],
            ["bias of a session's return", _told(study.return_bias), None],
            [
                "rewards within 90 % intervals",
                None if study.coverage is None else _told(study.coverage, 3),
                None,
            ],
        ],
    )
    shown.table(
        "Return of a session",
        ["policy", "told by", "return", "95 % interval", "off by", "interval holds the truth"],
        [*_said(study), *_true(study)],
        note="± one standard error over seeds. "
        f"Off: estimate less truth. {study.judges:,.0f} sessions of users that nothing was "
        "learned from judge.",
    )
    if study.truths is not None:
        shown.table(
            "What the policy earns more than others, user by user",
            ["than", "more", "95 % interval", "p"],
            [
                [
                    name,
                    round(each.value, 2),
                    interval(each.lower, each.upper, digits=2),
                    each.p_value,
                ]
                for name, each in (
                    ("the champion as it is served", study.truths.over_champion),
                    ("the champion without exploration", study.truths.over_greedy),
                    ("the best constant", study.truths.over_constant),
                )
            ],
        )
    if study.ablations:
        shown.table(
            "True return with each switch on and off",
            [
                "switch",
                "as it is",
                "seeds",
                "on",
                "off",
                "gain",
                "95 % interval",
                "p",
                "simulated on",
                "simulated off",
                "unseen on",
                "unseen off",
            ],
            [
                [
                    each.switch,
                    "on" if each.kept else "off",
                    each.seeds,
                    _told(each.on),
                    _told(each.off),
                    *_gain(each.gain),
                    _told(each.simulated_on),
                    _told(each.simulated_off),
                    _told(each.unseen_on),
                    _told(each.unseen_off),
                ]
                for each in study.ablations
            ],
            note="Simulated: in the simulators that it was trained in. Unseen: in those of the "
            "judges' users.",
        )


def _said(study: LogStudy) -> list[list[object]]:
    off = None
    if study.truths is not None:
        off = f"{study.simulated.value - study.truths.policy.value:+.1f}"
    rows: list[list[object]] = [
        ["trained", "simulators it was trained in", _told(study.simulated), None, off, None],
        _estimated(study, study.unseen, study.unseen.estimator),
    ]
    rows += [
        _estimated(study, each, f"{each.estimator} over the judges' sessions")
        for each in study.estimates
    ]
    if study.logged is not None:
        rows.append(
            ["latest generation", "its own sessions", _told(study.logged), None, None, None]
        )
    return rows


def _estimated(study: LogStudy, told: SessionEstimate, by: str) -> list[object]:
    return [
        "trained",
        by,
        f"{told.value:.1f}",
        interval(told.lower, told.upper, digits=1),
        None if told.off is None else f"{told.off.value:+.1f}",
        None if told.covers is None else f"{told.covers} of {study.seeds}",
    ]


def _true(study: LogStudy) -> list[list[object]]:
    truths = study.truths
    if truths is None:
        return []
    named = {
        "trained": truths.policy,
        "champion": truths.champion,
        "champion without exploration": truths.greedy,
        "best constant": truths.constant,
        "optimum": truths.optimum,
    }
    return [[name, "fresh users", _told(each), None, None, None] for name, each in named.items()]


def _gain(gain: Difference) -> list[object]:
    return [round(gain.value, 2), interval(gain.lower, gain.upper, digits=2), gain.p_value]


def _told(mean: Mean, digits: int = 1) -> str:
    error = "" if mean.error is None else f" ± {mean.error:.{digits}f}"
    return f"{mean.value:.{digits}f}{error}"
