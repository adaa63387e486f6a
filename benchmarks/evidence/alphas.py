"""Forms of an alpha term: the score `alpha` at other constants, and the default with more of it, less, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from benchmarks.evidence.candidates import late_rule
from benchmarks.evidence.judge import Figures, Study, figures
from benchmarks.evidence.rivals import each
from benchmarks.evidence.seen import Rule, Seen
from benchmarks.evidence.statistics import interval
from ww_opt.spectral.scores import LATE_SHARE, USUAL_ALPHA, network_gain
from ww_opt.spectral.terms import AlphaTerm, dead, mean_of, missing_spikes, trap

__all__ = ["FAMILIES", "LATE_FAMILIES", "differences"]


def alpha_rule(term: AlphaTerm) -> Rule:
    """Return the score `alpha` with another term."""
    return each(lambda run: -mean_of(lambda row: term(row) + trap(row) + dead(row), run.rows))


def default_value(run: Seen, share: float, term: AlphaTerm, is_added: bool = False) -> float:
    """Return the default score with a share of another alpha term, taken from the spikes or added to them."""
    spikes = 1.0 if is_added else 1.0 - share
    gain = network_gain(tuple(run.diagnosis()))
    own = mean_of(lambda row: spikes * missing_spikes(row) + share * term(row) + trap(row) + dead(row), run.rows)
    return own + min(max(-gain, 0.0), 1.0)


SHIPPED = AlphaTerm()
NO_GATE = (10.0, 11.0)
BY_SPIKES = replace(SHIPPED, D=NO_GATE, n_tail=1e-9, sigma=1e9)
BY_FIT = replace(SHIPPED, spikes=1e-9)
TERMS: Mapping[str, AlphaTerm] = MappingProxyType(
    {
        "as shipped": SHIPPED,
        "D .06 to .12": replace(SHIPPED, D=(0.06, 0.12)),
        "D .08 to .16": replace(SHIPPED, D=(0.08, 0.16)),
        "n_tail 20": replace(SHIPPED, n_tail=20),
        "sigma .5": replace(SHIPPED, sigma=0.5),
        "spikes from 5 %": replace(SHIPPED, spikes=0.05),
        "gated by spikes alone": BY_SPIKES,
        "gated by the fit alone": BY_FIT,
        "not gated": replace(BY_SPIKES, spikes=1e-9),
        "reach 2": replace(SHIPPED, reach=2.0),
        "reach 8": replace(SHIPPED, reach=8.0),
        "1.5 to 2": replace(SHIPPED, low=1.5),
        "2 to 3": replace(SHIPPED, high=3.0),
        "2 to 4": USUAL_ALPHA,
        "3 to 4": replace(SHIPPED, low=3.0, high=4.0),
    }
)
FORMS: Mapping[str, tuple[float, AlphaTerm, bool]] = MappingProxyType(
    {
        "none": (0.0, USUAL_ALPHA, False),
        "2 to 4, a tenth": (0.1, USUAL_ALPHA, False),
        "2 to 4, a quarter": (0.25, USUAL_ALPHA, False),
        "2 to 4, half": (0.5, USUAL_ALPHA, False),
        "near 2, a tenth": (0.1, SHIPPED, False),
        "near 2, a quarter": (0.25, SHIPPED, False),
        "near 2, half": (0.5, SHIPPED, False),
        "near 2, half, gated by the fit alone": (0.5, BY_FIT, False),
        "near 2, .1 added, not gated": (0.1, TERMS["not gated"], True),
        "near 2, .5 added, not gated": (0.5, TERMS["not gated"], True),
        "near 2, .5 added, gated by the fit alone": (0.5, BY_FIT, True),
    }
)


def _rule(form: tuple[float, AlphaTerm, bool]) -> Rule:
    return each(lambda run: -default_value(run, *form))


def _late_rule(form: tuple[float, AlphaTerm, bool]) -> Rule:
    late = late_rule(0.0)
    weights = _rule(form)
    return lambda runs: late(runs) + LATE_SHARE * weights(runs)


FAMILIES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "alpha": {name: alpha_rule(term) for name, term in TERMS.items()},
        "default with alpha": {name: _rule(form) for name, form in FORMS.items()},
    }
)
LATE_FAMILIES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {"late guard with alpha": {name: _late_rule(form) for name, form in FORMS.items()}}
)


def differences(base: Sequence[Study], late: Sequence[Study]) -> Iterator[Sequence[str]]:
    """Rows of a table: each form of the default less the one without alpha, trial for trial in each bootstrap."""
    yield "alpha in the default", "end", "half", "points lost", "late guard", "its points lost"
    tables = [
        {name: [figures(study, rule) for study in of] for name, rule in rules.items()}
        for of, rules in ((base, FAMILIES["default with alpha"]), (late, LATE_FAMILIES["late guard with alpha"]))
    ]
    for name in FORMS:
        if name != "none":
            plain, guarded = (list(zip(own[name], own["none"], strict=True)) for own in tables)
            yield (
                name,
                *(_difference(plain, column) for column in ("end", "half", "lost")),
                *(_difference(guarded, column) for column in ("end", "lost") if guarded),
            )


def _difference(pairs: Sequence[tuple[Figures, Figures]], column: str) -> str:
    mean = np.mean([getattr(one, column) - getattr(other, column) for one, other in pairs], axis=0)
    low, high = interval(mean[1:])
    digits = 1 if column == "lost" else 3
    return f"{mean[0]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
