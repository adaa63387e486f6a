"""Old spools -> MLflow, when nobody tunes: what ``ww-opt mlflow sync`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ww_opt.tracking.outbox import Outbox, Target
from ww_opt.tracking.spool import MAX_BYTES, files, header_of
from ww_opt.tracking.stores import Trouble, check, files_beside

__all__ = ["Replayed", "headers", "replay"]

_LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class Replayed:
    """How many records were sent and how many are left, with the last trouble, if any."""

    n_sent: int
    n_left: int
    trouble: Trouble | None


def headers(folder: Path) -> list[dict[str, Any]]:
    """The distinct headers of the spools in a folder, the oldest first; an empty one for damaged ones."""
    found: list[dict[str, Any]] = []
    for path in files(folder):
        header, _ = header_of(path)
        if header not in found:
            found.append(header)
    return found


def replay(
    folder: Path, header: Mapping[str, Any], target: Target, timeout: float, say: Callable[[str], object]
) -> Replayed:
    """Send what lies in the spools that have a header, until nothing is left, time is up or somebody must mend it.

    What fails for now is tried again after pauses of up to ten seconds. Spools that a running process holds are its
    own to send. What was written before is found and stays.

    Args:
        folder: where the spools lie.
        header: of those to send.
        target: where to, a password in its address included.
        timeout: in seconds.
        say: told in a sentence of damaged records.

    Raises:
        ValueError: MLflow has no store for the address.
    """
    check(target.uri)
    whole = Target(target.uri, target.experiment, target.artifact_location or files_beside(target.uri))
    outbox = Outbox(whole, folder, lambda sentence, of: say(sentence) if of is None else None, MAX_BYTES)
    outbox.adopt(header)
    n, deadline, pause = len(outbox), time.monotonic() + timeout, 0.5
    while outbox.flush(max(deadline - time.monotonic(), 0.0)) and time.monotonic() + pause < deadline:
        if outbox.trouble is not None and not outbox.trouble.is_passing:
            break
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    outbox.close()
    return Replayed(n - len(outbox), len(outbox), outbox.trouble if len(outbox) else None)
