"""Tables of recorded histories: what each rule finds, what it does not, and that one look alone ends nothing."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.search.test_pruner import layer, look, recorded
from ww_opt import SpectralPruner
from ww_opt.search import records
from ww_opt.search.decisions import decisions, ended_by
from ww_opt.search.faults import DEFAULT_FAULTS, FAULTS, lasting
from ww_opt.search.records import LayerRecord, Look


def history(*layers_of_looks: list[LayerRecord], losses: list[float] | None = None) -> list[Look]:
    """Looks at 10, 20, ... % of a run."""
    own = losses or [1.0] * len(layers_of_looks)
    return [
        Look(10 * (place + 1), 100, 1.0, 1.0, train_loss=loss, layers=tuple(layers))
        for place, (layers, loss) in enumerate(zip(layers_of_looks, own, strict=True))
    ]


def found(looks: list[Look], rule: str, first_loss: float | None = 2.3) -> str:
    kept = looks if len(looks) < 4 else [looks[0], *looks[-3:]]
    fault = lasting(kept, [rule], {own.step: own.train_loss for own in looks}, first_loss)
    return "" if fault is None else fault.words


@pytest.mark.parametrize(
    ("losses", "first_loss", "is_found"),
    [
        ([1.9, 2.31, 2.30], 2.3, True),  # back at chance
        ([1.9, 2.31, 1.8], 2.3, False),  # it recovered
        ([1.9, 1.8, 2.31], 2.3, False),  # once is no time
        ([1.9, 2.25, 2.27], 2.3, False),  # half as bad
        ([0.1, 2.2, 2.2], 2.3, True),
        ([2.3, 2.31, 2.31], 2.3, False),  # has learnt nothing yet
        ([2.4, 2.5, 2.6], 2.3, True),  # rises from the start
        ([2.6, 2.5, 2.4], 2.3, False),  # high but falling
        ([1.9, 2.31, 2.30], None, False),  # the first look stands in, and nothing was learnt since
        ([2.3, 1.5, 2.4, 2.4], None, True),
        ([math.nan, math.nan, math.nan], 2.3, False),  # no loss was given
        ([-3.0, -1.0, -0.9], -1.0, True),  # logarithms of densities
        ([-3.0, -3.5, -4.0], -1.0, False),
        ([1.0, 1.0, 1.0], 0.0, False),
    ],
)
def test_diverged(losses: list[float], first_loss: float | None, is_found: bool) -> None:
    assert bool(found(history(*[[layer()]] * len(losses), losses=losses), "diverged", first_loss)) is is_found


@pytest.mark.parametrize(
    ("rule", "looks", "words"),
    [
        ("traps", [[layer("a")], [layer("a", "TRAP", traps=2)], [layer("a", "TRAP", traps=2)]], "in 1 of 1 layers"),
        ("traps", [[layer("a", "TRAP", traps=2)]] * 3, ""),  # they were there from the start
        ("traps", [[layer("a")], [layer("a")], [layer("a", "TRAP", traps=9)]], ""),  # one look
        ("traps", [[layer("a"), layer("b")], *[[layer("a", "TRAP", traps=3), layer("b")]] * 2], ""),  # half of them
        ("traps", [[layer("a"), layer("b")], *[[layer("a", "TRAP", traps=30), layer("b")]] * 2], "up to 30"),  # severe
        ("traps", [[layer("a")], *[[layer("b", "TRAP", traps=30)]] * 2], ""),  # a layer of another name
        ("rank_collapse", [[layer("a")], *[[layer("a", "RANK_COLLAPSE"), layer("b")]] * 2], "rank collapse in ['a']"),
        ("rank_collapse", [[layer("a", "RANK_COLLAPSE")], [layer("a")], [layer("a", "RANK_COLLAPSE")]], ""),
        ("rank_collapse", [[layer("a", "RANK_COLLAPSE", role="HEAD")]] * 3, ""),
        ("rank_collapse", [[layer("a", "RANK_COLLAPSE", M=31)]] * 3, ""),
        ("broken", [[layer(spectral_norm=4.0)], *[[layer(spectral_norm=41.0)]] * 2], "10.2 times"),
        ("broken", [[layer(spectral_norm=4.0)], *[[layer(spectral_norm=0.3)]] * 2], "0.075 times"),
        ("broken", [[layer(spectral_norm=4.0)], *[[layer(spectral_norm=0.0)]] * 2], "0 times"),
        ("broken", [[layer(spectral_norm=4.0)], *[[layer(spectral_norm=39.0)]] * 2], ""),
        ("broken", [[layer(spectral_norm=0.0)], *[[layer(spectral_norm=39.0)]] * 2], ""),  # no scale to go by
        ("broken", [[layer(spectral_norm=math.nan)]] * 3, ""),
        ("moved_little", [[layer("a", "MOVED_LITTLE"), layer("b", "MOVED_LITTLE"), layer("c")]] * 2, "in 2 of 3"),
        ("moved_little", [[layer("a", "MOVED_LITTLE"), layer("b")]] * 2, ""),
        ("moved_little", [[]] * 2, ""),
    ],
)
def test_each_rule(rule: str, looks: list[list[LayerRecord]], words: str) -> None:
    said = found(history(*looks), rule)
    assert words in said
    assert bool(said) is bool(words)


def test_what_it_saw_is_on_record() -> None:
    study = optuna.create_study(pruner=SpectralPruner(rules=DEFAULT_FAULTS))
    trial = study.ask()
    for step, norm in ((10, 4.0), (20, 80.0), (30, 90.0)):
        records.write_look(trial, look(layer("a", spectral_norm=norm), layer("b"), step=step))
        trial.report(1.0, step)
        assert trial.should_prune() is (step == 30)
    (own,) = decisions(study.trials[0])
    assert (own.rule, own.half, own.layers, own.value, own.threshold) == ("broken", "fault", ("a",), 22.5, 10.0)
    assert own.words.endswith("is 22.5 times that of the first look at step 30")
    assert (own.step, own.fraction) == (30, 0.3)
    assert ended_by(study.trials[0]) == "broken"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_sign_is_enough_where_it_is_fatal(bad: float) -> None:
    trial = recorded(look(layer("a"), step=10), look(layer("a", n_eigenvalues=0), step=20))
    assert SpectralPruner(rules=[]).prune(optuna.create_study(), trial)
    study = optuna.create_study()
    asked = study.ask()
    asked.report(bad, 3)
    assert SpectralPruner(rules=[]).prune(study, study.trials[0])
    assert decisions(study.trials[0])[0].rule == "not_finite"


# whatever JSON may hold where a record of ours is looked for
_ODD: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=3)
_NUMBER = st.none() | st.floats() | st.integers(-(10**18), 10**18)
_LAYER = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("N", "M", "n_eigenvalues", "traps", "spectral_norm", "alpha"), _NUMBER | _ODD),
        "name": st.sampled_from(["a", "b", "renamed", None, 7]),
        "findings": st.lists(st.sampled_from(["TRAP", "RANK_COLLAPSE", "RANDOM", "NO_SUCH", 3])) | _ODD,
        "role": st.sampled_from(["", "HIDDEN", "HEAD", None]),
    },
)
_LOOK = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("step", "n_steps", "value", "score", "train_loss", "ahead_loss", "n_ahead"), _NUMBER | _ODD),
        "n_steps": st.sampled_from([0, 100, None, -5, "100"]),
        "layers": st.lists(_LAYER | _ODD, max_size=4) | _ODD,
        "direction": st.sampled_from(["minimize", "maximize", None, 1]),
        "of_another_version": _ODD,
    },
)
_ATTRIBUTES = st.dictionaries(
    st.integers(0, 100).map("ww_opt:look:{}".format) | st.sampled_from(["ww_opt:look:x", "ww_opt:look:", "look:3"]),
    _LOOK | _ODD,
    max_size=6,
) | st.fixed_dictionaries({"ww_opt:decision:3:rank": _LOOK | _ODD, "ww_opt:look:40": _LOOK})


def odd(attributes: dict[str, Any], state: TrialState) -> FrozenTrial:
    value = 1.0 if state is TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs=attributes)


@settings(max_examples=150, deadline=None)
@given(
    own=_ATTRIBUTES,
    others=st.lists(st.tuples(_ATTRIBUTES, st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED])), max_size=4),
    first_loss=_ODD,
)
def test_no_record_is_too_odd(own: dict[str, Any], others: list[Any], first_loss: Any) -> None:
    study = optuna.create_study()
    for attributes, state in others:
        study.add_trial(odd(attributes, state))
    study.ask()
    trial = study.trials[-1]
    trial.user_attrs.update({**own, "ww_opt:first_loss": first_loss})
    for pruner in (SpectralPruner(rules=tuple(FAULTS)), SpectralPruner(n_warmup_steps=0)):
        assert pruner.prune(study, trial) in (True, False)
        assert isinstance(pruner.explain(trial), str)
    assert all(isinstance(decisions(one), tuple) for one in study.trials)


def test_thousands_of_layers_are_read() -> None:
    wide = [layer(f"layer{number}", spectral_norm=4.0) for number in range(3000)]
    trial = recorded(*history(*[wide] * 4))
    assert not SpectralPruner().prune(optuna.create_study(), trial)
