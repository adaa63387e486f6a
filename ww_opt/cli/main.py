"""The command ``ww-opt``: its subcommands, and how it ends.

Exit codes: 0 done; 1 the user's own code failed, or ``compare`` found what it is to fail on; 2 bad input; 3 no trial
completed; 130 interrupted.
Heavy imports stand inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import sys

import click

from ww_opt import __version__
from ww_opt.cli.analyze import analyze
from ww_opt.cli.compare import compare
from ww_opt.cli.data_check import data_check
from ww_opt.cli.exit_codes import BAD_INPUT, INTERRUPTED
from ww_opt.cli.judge import judge
from ww_opt.cli.mlflow import mlflow
from ww_opt.cli.report import report
from ww_opt.cli.run import run
from ww_opt.cli.worker import storage_proxy, worker

__all__ = ["cli", "main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, invoke_without_command=True
)
@click.version_option(__version__, prog_name="ww-opt")
@click.pass_context
def cli(context: click.Context) -> None:
    """Tune neural networks without a test set.

    ww-opt trains many short trials and searches for the settings of each layer. Some training examples join late and
    judge each trial just before they do; no label is lost to validation. The spectra of the weight matrices say which
    layer is broken, idle or has hardly moved.

    \b
    ww-opt run studies/digits.py         search a study's space, log to MLflow, show what was found
    ww-opt report studies/digits.py      write what is known of it on one page
    ww-opt worker studies/digits.py      take trials of a study, on any machine that reaches its --storage
    ww-opt judge studies/digits.py       train its pick and rivals afresh, judge them by the sealed test set
    ww-opt data-check studies/digits.py  train on parts of the data, foresee what twice as much would give
    ww-opt analyze model.pt              read the spectra of a checkpoint, layer by layer
    ww-opt compare old.pt new.pt         say what changed between two checkpoints, and which layers broke
    ww-opt mlflow sync                   send to MLflow what waits from when it was away

    \b
    Exit codes: 0 done, 1 your own code failed, or --fail-on found it, 2 bad input, 3 no trial completed,
    130 interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (run, worker, report, analyze, compare, judge, data_check, mlflow, storage_proxy):
    cli.add_command(command)


def main() -> None:
    """Run the command; bad input ends in one line and exit code 2."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except (click.ClickException, OSError) as error:
        _refuse(error.format_message() if isinstance(error, click.ClickException) else str(error))
    except Exception as error:
        from ww_opt.study.study import is_bad_input

        if not is_bad_input(error):
            raise
        _refuse(str(error))


def _refuse(message: str) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(BAD_INPUT)
