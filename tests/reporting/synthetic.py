"""Studies that nobody trained: trials with the records that ww_opt writes, made in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ww_opt.search import records
from ww_opt.search.decisions import Decision
from ww_opt.search.repeats import MARK, START

N_STEPS = 100
KINDS = ("lr", "weight_decay")
ODD = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "quote\"s'&amp;", "x" * 200, "a|b`c`_d_",
    "\u5c64.\u6ce8\u610f\u529b", "{{ 7 * 7 }}", r"$\frac{1}{2}$",
)  # fmt: skip
"""Names that break whatever does not escape them; letters and digits stand in all, as in names of layers."""


def layer(name: str, alpha: float, *findings: str) -> records.LayerRecord:
    return records.LayerRecord(
        name=name, N=64, M=64, alpha=alpha, D=0.1, sigma=0.2, n_tail=12, spikes=3, n_eigenvalues=64, traps=0,
        rank_loss=0, stable_rank=7.5 + alpha, spectral_norm=4.0 * alpha, findings=findings, role="HIDDEN",
    )  # fmt: skip


def recorded(step: int, value: float, layers: Sequence[records.LayerRecord] = ()) -> dict[str, Any]:
    look = records.Look(step, N_STEPS, value, 1.0, train_loss=2.0 / step, layers=tuple(layers), late_loss=value,
                        late_accuracy=0.5, n_late=50)  # fmt: skip
    return dict([records.as_attribute(f"look:{step}", asdict(look))])


def space(labels: Sequence[str]) -> dict[str, BaseDistribution]:
    return {f"{kind}/{label}": FloatDistribution(1e-4, 1.0, log=True) for kind in KINDS for label in labels}


def pruned(params: dict[str, float], labels: Sequence[str], reason: str = "pruned: others were better") -> FrozenTrial:
    told = Decision(20, "late", "rank", True, 0.2, value=1.5, threshold=1.0, compared=(0, 1, 2), words=reason)
    attrs = recorded(20, 1.5, [layer(name, 3.0) for name in labels])
    attrs |= dict([records.as_attribute("decision:20:rank", asdict(told))])
    attrs |= {"ww_opt:reason": reason, "ww_opt:steps": 20}
    return create_trial(state=TrialState.PRUNED, params=params, distributions=space(labels), user_attrs=attrs)


def searched(n_trials: int, labels: Sequence[str] = ("conv", "out"), **options: Any) -> optuna.Study:
    """A study whose first learning rate matters, every fifth of whose trials was pruned."""
    rng = np.random.default_rng(0)
    study = optuna.create_study(**options)
    sign = -1.0 if study.direction is optuna.study.StudyDirection.MAXIMIZE else 1.0
    for number in range(n_trials):
        params = {name: float(10 ** rng.uniform(-4, 0)) for name in space(labels)}
        if number % 5 == 4:
            study.add_trial(pruned(params, labels))
            continue
        depth = math.log10(params[f"lr/{labels[0]}"]) + 2.0
        layers = [layer(name, 3.0 - math.log10(params[f"lr/{name}"])) for name in labels]
        value = sign * (depth**2 + 0.05 * rng.normal())
        attrs = recorded(50, value, layers) | recorded(N_STEPS, value, layers)
        trial = create_trial(value=value, params=params, distributions=space(labels), user_attrs=attrs)
        study.add_trial(trial)
    return study


def repeated(values: dict[str, Sequence[float]]) -> optuna.Study:
    """A study of two settings, ``start`` and ``better``: values of the trial and of its repeats, one a draw."""
    study = optuna.create_study()
    distributions = {"lr/a": FloatDistribution(0, 1), "lr/b": FloatDistribution(0, 1)}
    own = {"start": {"lr/a": 0.1, "lr/b": 0.1}, "better": {"lr/a": 0.5, "lr/b": 0.25}}
    study.set_user_attr(START, {"params": own["start"]})
    for draw in range(len(values["start"])):
        for number, name in enumerate(own):
            attrs = {MARK: [number, draw]} if draw else {}
            study.add_trial(
                create_trial(value=values[name][draw], params=own[name], distributions=distributions, user_attrs=attrs)
            )
    return study
