"""The line that says how to go on: the same command, without a password."""

from __future__ import annotations

import sys

from ww_opt.cli.stored import STORAGE_VARIABLE

__all__ = ["going_on"]


def going_on() -> str:
    """Return the command that runs now, to be printed; what it lacks for a password stands beside it."""
    from ww_opt.reporting.terminal import command_line
    from ww_opt.study.secrets import has_password, without_password

    arguments = sys.argv[1:]
    line = command_line("ww-opt", *map(without_password, arguments))
    if any(has_password(own) for own in arguments):
        return f"{line}\n  (with your password for ***, or with the address in {STORAGE_VARIABLE} and no --storage)"
    return line
