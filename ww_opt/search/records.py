"""What a trial remembers, as JSON in Optuna's storage.

Every look at a running trial is one user attribute, ``ww_opt:look:<step>``; the pruner, MLflow and the closing
report read these and nothing else, so a study survives a crash and workers on other machines see all of it.
Optuna copies user attributes to the retry of a failed trial, and whoever enqueues a trial may; so a record names its
trial, ``ww_opt:of_trial``, and what another trial remembers is not read, and is cleared by the first own record.
This module imports neither torch nor anything that does: records are read where no model is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import optuna

from ww_opt.spectral.findings import current_name

if TYPE_CHECKING:
    from ww_opt.spectral.rows import LayerDiagnostics

__all__ = [
    "LayerRecord",
    "Look",
    "as_attribute",
    "begin",
    "column",
    "first_and_last",
    "last_look",
    "last_step",
    "layer_records",
    "look_values",
    "looks",
    "own_attributes",
    "read",
    "read_all",
    "reason",
    "shapes",
    "write",
    "write_look",
]

_PREFIX = "ww_opt:"
_LOOK = f"{_PREFIX}look:"
_TRIAL = f"{_PREFIX}of_trial"
_ENDED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
Attributes = dict[str, Any]
_OWN: WeakSet[optuna.Trial] = WeakSet()  # reading all attributes before each record would take its time


@dataclass(frozen=True)
class LayerRecord:
    """One layer at one look: the columns of the diagnosis that others act on. NaN: not fitted.

    ``role`` is the name of a :class:`ww_opt.spectral.findings.Role`; empty in records from before there were roles.
    """

    name: str
    N: int
    M: int
    alpha: float
    D: float
    sigma: float
    n_tail: int
    spikes: int
    n_eigenvalues: int
    traps: int
    rank_loss: int
    stable_rank: float
    spectral_norm: float
    findings: tuple[str, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Look:
    """One look at a trial: where it stood, what it cost, and what every layer showed.

    ``late_loss`` and ``late_accuracy`` are those of ``n_late`` examples that came late, NaN where none has yet.
    ``ahead_loss`` is the late loss of the ``n_ahead`` examples that are still to come, asked at this look; NaN where
    nobody was. ``direction`` says which way ``score`` is better; empty in records of earlier versions.
    ``value`` is what was reported to Optuna. ``train_loss`` is NaN where none was given. ``n_steps`` is 0 where the
    length of the run is not known. ``seconds`` is the cost of the diagnosis.
    """

    step: int
    n_steps: int
    value: float
    score: float
    train_loss: float = math.nan
    seconds: float = 0.0
    layers: tuple[LayerRecord, ...] = ()
    late_loss: float = math.nan
    late_accuracy: float = math.nan
    n_late: int = 0
    ahead_loss: float = math.nan
    n_ahead: int = 0
    direction: str = ""


def layer_records(rows: Iterable[LayerDiagnostics]) -> tuple[LayerRecord, ...]:
    """Reduce the rows of a diagnosis to what is remembered."""
    names = [item.name for item in fields(LayerRecord) if item.name not in ("findings", "role")]
    return tuple(
        LayerRecord(
            **{name: getattr(row, name) for name in names},
            findings=tuple(finding.name for finding in row.findings),
            role=row.role.name,
        )
        for row in rows
    )


def write(trial: optuna.Trial, /, **values: Any) -> None:
    """Remember named JSON values with a trial; NaN and infinity become ``null``."""
    _make_own(trial)
    for name, value in values.items():
        trial.set_user_attr(_PREFIX + name, _to_json(value))


def write_look(trial: optuna.Trial, look: Look) -> None:
    """Remember one look; a second one at the same step replaces the first."""
    _make_own(trial)
    trial.set_user_attr(f"{_LOOK}{look.step}", _to_json(asdict(look)))


def read(trial: optuna.trial.FrozenTrial | optuna.Trial | Attributes, name: str, default: Any = None) -> Any:
    """Read back a value written by :func:`write`; ``default`` where there is none, or it was no number.

    Optuna copies all attributes of a running trial at each call: whoever reads several gives :func:`own_attributes`.
    """
    found = (trial if isinstance(trial, dict) else own_attributes(trial)).get(_PREFIX + name)
    return default if found is None else found


def as_attribute(name: str, value: Any) -> tuple[str, Any]:
    """Key and JSON value under which :func:`write` keeps a value: for who has a storage and no running trial."""
    return _PREFIX + name, _to_json(value)


def read_all(trial: optuna.trial.FrozenTrial | optuna.Trial, prefix: str) -> list[Any]:
    """Read back all values whose names begin with ``prefix``, as JSON kept them."""
    return [value for key, value in own_attributes(trial).items() if key.startswith(_PREFIX + prefix)]


def look_values(trial: optuna.trial.FrozenTrial | optuna.Trial | Attributes) -> dict[int, Mapping[str, Any]]:
    """All looks by step, rising, as JSON kept them: quicker than :func:`looks`, which reads every layer."""
    found = {
        int(key.removeprefix(_LOOK)): value
        for key, value in (trial if isinstance(trial, dict) else own_attributes(trial)).items()
        if key.startswith(_LOOK) and key.removeprefix(_LOOK).isdecimal() and isinstance(value, Mapping)
    }
    return dict(sorted(found.items()))


def reason(trial: optuna.trial.FrozenTrial | optuna.Trial) -> str:
    """Why the trial was pruned or failed, in words; empty where it was neither."""
    return str(read(trial, "reason", ""))


def looks(trial: optuna.trial.FrozenTrial | optuna.Trial) -> tuple[Look, ...]:
    """Read back all looks at a trial, by step."""
    return tuple(_from_json(value) for value in look_values(trial).values())


def first_and_last(trial: optuna.trial.FrozenTrial | optuna.Trial, n_last: int) -> tuple[Look, ...]:
    """Read back the first look and the last ``n_last``, by step; quicker than :func:`looks`."""
    values = list(look_values(trial).values())
    return tuple(map(_from_json, values if len(values) <= n_last else [values[0], *values[-n_last:]]))


def column(trial: optuna.trial.FrozenTrial | optuna.Trial, name: str) -> dict[int, Any]:
    """Read back one field of all looks, by step, rising, without their layers."""
    return {step: _fitting(Look, value)[name] for step, value in look_values(trial).items()}


def last_look(trial: optuna.trial.FrozenTrial | optuna.Trial) -> Look | None:
    """Read back the last look alone, which is quicker than :func:`looks`; ``None`` before the first."""
    values = look_values(trial)
    return _from_json(values[max(values)]) if values else None


def last_step(trial: optuna.trial.FrozenTrial | optuna.Trial | Attributes) -> int | None:
    """Return the step of the last look; ``None`` before the first."""
    return max(look_values(trial), default=None)


def own_attributes(trial: optuna.trial.FrozenTrial | optuna.Trial) -> Attributes:
    """The user attributes of this trial itself: without records that were copied from another one before it ran."""
    attributes = {key: value for key, value in trial.user_attrs.items() if value is not None}
    is_own = attributes.get(_TRIAL, trial.number) == trial.number
    # what ran to its end wrote records of its own, or was added with all that it remembers
    if is_own or getattr(trial, "state", None) in _ENDED:
        return attributes
    return {key: value for key, value in attributes.items() if not key.startswith(_PREFIX)}


def begin(trial: optuna.Trial) -> None:
    """Clear what was copied from another trial, and put this one's number on the records to come."""
    for key, value in trial.user_attrs.items():
        if key.startswith(_PREFIX) and value is not None:
            trial.set_user_attr(key, None)  # Optuna cannot remove any
    trial.set_user_attr(_TRIAL, trial.number)
    if isinstance(trial, optuna.Trial):
        _OWN.add(trial)


def _make_own(trial: optuna.Trial) -> None:
    if isinstance(trial, optuna.Trial) and trial in _OWN:
        return
    mark = trial.user_attrs.get(_TRIAL)
    if mark is None:
        trial.set_user_attr(_TRIAL, trial.number)
    elif mark != trial.number:
        begin(trial)
    if isinstance(trial, optuna.Trial):
        _OWN.add(trial)


def shapes(trial: optuna.trial.FrozenTrial | optuna.Trial) -> tuple[tuple[Any, Any, Any], ...] | None:
    """Name, N and M of every layer at the last look; ``None`` without one. Quicker than :func:`looks`."""
    values = look_values(trial)
    if not values:
        return None
    layers = _items(values[max(values)].get("layers"))
    return tuple((own.get("name"), own.get("N"), own.get("M")) for own in layers if isinstance(own, Mapping))


def _to_json(value: Any) -> Any:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)  # numpy's numbers are not JSON
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Mapping[str, Any]) -> Look:
    layers = tuple(_layer(own) for own in _items(value.get("layers")) if isinstance(own, Mapping))
    return Look(**{**_fitting(Look, value), "layers": layers})


def _layer(value: Mapping[str, Any]) -> LayerRecord:
    findings = tuple(current_name(str(own)) for own in _items(value.get("findings")))
    return LayerRecord(**{**_fitting(LayerRecord, value), "findings": findings})


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


_ABSENT: Mapping[str, Any] = {"float": math.nan, "int": 0, "str": ""}


def _fitting(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the fields from JSON: NaN where it has null; what other versions did not write, or wrote otherwise, absent.

    Unknown keys are left out.
    """
    found = {}
    for item in fields(kind):
        own, absent = values.get(item.name), _ABSENT.get(str(item.type))
        if item.type == "str":
            found[item.name] = own if isinstance(own, str) else absent
        elif isinstance(own, int | float) and (item.type == "float" or math.isfinite(own)):
            found[item.name] = int(own) if item.type == "int" else own
        else:
            found[item.name] = absent
    return found
