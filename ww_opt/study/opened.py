"""What the sealed test set said of a pick, kept with the study: it is opened once, and read again from there.

Nothing that searches or picks reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ww_opt.study.closing import TestAccuracy

__all__ = ["recalled", "remember"]

_NAME = "ww_opt:test_accuracy"


def remember(host: optuna.Study, pick: FrozenTrial, accuracy: TestAccuracy) -> None:
    """Keep what was said of a pick, with its number; NaN becomes ``null``."""
    own = {key: None if value != value else value for key, value in asdict(accuracy).items()}
    host.set_user_attr(_NAME, {"of": pick.number, **own})


def recalled(host: optuna.Study, pick: FrozenTrial) -> TestAccuracy | None:
    """What was said of this pick; ``None`` where nothing was, or it was another one's."""
    kept = host.user_attrs.get(_NAME)
    if not isinstance(kept, Mapping) or kept.get("of") != pick.number:
        return None
    names = [item.name for item in fields(TestAccuracy) if item.name in kept]
    known: dict[str, Any] = {name: math.nan if kept[name] is None else kept[name] for name in names}
    try:
        return TestAccuracy(**known)
    except TypeError:  # another version's
        return None
