"""The per-layer search space: from a model and a trial to settings per label."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from torch import nn
from torch.optim import Optimizer

from ww_opt.search import records
from ww_opt.search.bounds import around
from ww_opt.search.choices import Choice, Single, check, suggested
from ww_opt.search.starting import fitted
from ww_opt.training.description import description
from ww_opt.training.init_scale import apply_init_scale, scalable
from ww_opt.training.labels import Label, by_layer
from ww_opt.training.layerwise import Layer, LayerSettings, apply_dropout, labelled, parameter_groups
from ww_opt.training.present import is_decoupled, present

__all__ = ["LayerwiseSpace", "crowding"]

_LOG = logging.getLogger(__name__)
_KINDS = tuple(field.name for field in fields(LayerSettings))
_ACTS_ON = {
    "weight_decay": "a weight that is decayed",
    "dropout": "a dropout module",
    "init_scale": "a weight that is not 0 throughout",
}
"""What a kind acts on, where some labels may have none."""


@dataclass(frozen=True, kw_only=True)
class LayerwiseSpace:
    """Suggests learning rate, weight decay, momentum, dropout and the scale of initial weights for every label.

    Each setting is a distribution (one parameter ``<setting>/<label>`` per label), a number (a constant: no
    parameter), a mapping from label to either, or ``None`` (the optimizer's or the model's own value).

    No dimension is dead: dropout is suggested only where the model has one, weight decay only where something is
    decayed, and a distribution that can take a single value is a constant.

    Args:
        lr: learning rate, > 0.
        weight_decay: >= 0; acts on matrices of layers, never on biases, norm parameters, tokens and position tables,
            nor on what the model exempts itself (``no_weight_decay()``, ``parameter._no_weight_decay``).
        dropout: probability of dropping a unit, in [0, 1].
        momentum: in [0, 1); SGD's momentum or Adam's first beta.
        init_scale: > 0; a factor on the weights that ``build_model`` returns, fresh or pretrained, once, before
            training. Acts on matrices of layers, exempt from decay or not, never on biases, norm parameters, tokens,
            position tables and frozen weights; on what layers share once. Scores count from the loss before it.
        label: layer name -> label: ``by_layer`` (default), ``by_depth``, ``by_kind``, ``by_block()``, ``by_prefix()``,
            ``tied`` or your own function. :meth:`describe` shows what it makes of a model.

    Raises:
        TypeError: a setting is neither a distribution nor a number nor a mapping.
        ValueError: a number or a bound is outside its range, or no setting is given.
    """

    lr: Choice = None
    weight_decay: Choice = None
    dropout: Choice = None
    momentum: Choice = None
    init_scale: Choice = None
    label: Label = by_layer

    def __post_init__(self) -> None:
        if all(getattr(self, kind) in (None, {}) for kind in _KINDS):
            raise ValueError(
                "A space needs at least one setting, but got none: give lr, weight_decay, dropout, momentum or "
                "init_scale."
            )
        if not callable(self.label):
            raise TypeError(
                f"`label` must be a function from a layer's name to its label, but got {self.label!r}: import one, "
                "such as `from ww_opt import tied`, or write `lambda name: ...`."
            )
        for kind in _KINDS:
            choice = getattr(self, kind)
            for value in choice.values() if isinstance(choice, Mapping) else (choice,):
                check(kind, value)

    @classmethod
    def around(
        cls,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer],
        *,
        label: Label = by_layer,
        momentum: bool = False,
        init_scale: bool = False,
        decades: float = 1.5,
    ) -> LayerwiseSpace:
        """Lay a space around what is trained today: ``LayerwiseSpace.around(build_model(), task.optimizer)``.

        Learning rates get ``decades`` each way, weight decay the usual range of its family (decoupled as AdamW's, or in
        the gradient as SGD's), dropout 0 to 0.5 where the model has any; each wide enough to hold the present value.
        What the optimizer does not have is not searched.

        Args:
            model: as ``build_model`` returns it; left as it is.
            optimizer: as ``Task.optimizer``, or one that was built on ``model``, whose ``lr_scale`` is then part of the
                rates.
            label: as for the class.
            momentum: search it, too.
            init_scale: search it, too, by a factor of 2.5 each way.
            decades: of the learning rate, each way; > 0.

        Raises:
            TypeError: ``optimizer`` is none.
            ValueError: layers of one label have different learning rates, ``decades`` is not positive, momentum or
                ``init_scale`` is asked for and acts on nothing, or nothing is left to search.
        """
        if not decades > 0:
            raise ValueError(f"`decades > 0` must hold, but got decades={decades}.")
        today = present(model, optimizer, label)
        decoupled = is_decoupled(today.optimizer)
        found: dict[str, Choice] = {}
        asked = {"momentum": momentum, "init_scale": init_scale}
        for kind in (each for each in _KINDS if asked.get(each, True)):
            bounds = {
                name: around(kind, value, decoupled=decoupled, decades=decades)
                for name, own in today.settings.items()
                if (value := getattr(own, kind)) is not None
            }
            is_one = len(set(bounds.values())) == 1 and (
                kind in ("dropout", "weight_decay") or len(bounds) == len(today.settings)
            )
            found[kind] = next(iter(bounds.values())) if is_one else bounds or None
        if momentum and found["momentum"] is None:
            raise ValueError(
                f"Momentum acts on nothing in {type(today.optimizer).__name__}: leave out `momentum=True`."
            )
        if init_scale and found["init_scale"] is None:
            raise ValueError(
                "`init_scale` needs weights that are trained and not all 0, but this model has none: leave it out."
            )
        return cls(**found, label=label)

    def present(self, model: nn.Module, optimizer: Optimizer | Callable[..., Optimizer]) -> dict[str, float]:
        """Return what is trained today as parameters of this space: ``study.enqueue_trial(space.present(...))``.

        A value outside the bounds is taken at the nearest of them, and a warning is logged. Of what the optimizer or
        the model does not have there is no value.

        Args:
            model: as ``build_model`` returns it.
            optimizer: as for :meth:`around`.

        Raises:
            TypeError: ``optimizer`` is none.
            ValueError: layers of one label have different learning rates, or as :meth:`suggest`.
        """
        start = fitted(self.parameters(model), present(model, optimizer, self.label).settings)
        if start.note:
            _LOG.warning("%s", start.note)
        return start.values

    def parameters(self, model: nn.Module) -> dict[str, BaseDistribution]:
        """List the search parameters for ``model``: name -> distribution, in the order in which they are suggested.

        Raises:
            ValueError: as in :meth:`suggest`.
        """
        return {
            f"{kind}/{label}": choice
            for label, acting in self._acting(model).items()
            for kind in _KINDS
            if isinstance(choice := self._choice(kind, label, acting), BaseDistribution) and not choice.single()
        }

    def suggest(self, trial: optuna.trial.BaseTrial, model: nn.Module) -> dict[str, LayerSettings]:
        """Suggest settings for every label of ``model``.

        Raises:
            ValueError: a mapping names a label that the model lacks, or dropout is set where the model has none.
        """
        return {
            label: LayerSettings(
                **{kind: suggested(trial, f"{kind}/{label}", self._choice(kind, label, acting)) for kind in _KINDS}
            )
            for label, acting in self._acting(model).items()
        }

    def configure(self, trial: optuna.trial.BaseTrial, model: nn.Module) -> list[dict[str, Any]]:
        """Suggest settings, set the model's dropout and scale in place, and return parameter groups for its optimizer.

        The settings are remembered with the trial, constants too. Groups hold ``momentum`` under that name, as SGD
        takes it; :meth:`ww_opt.Run.optimizer` translates it for Adam and refuses what acts on nothing. A model that was
        configured before goes over to the new dropout and scale. A loss before training, which scores count from, is
        that before this call: scaled weights have another one.

        Raises:
            ValueError: as in :meth:`suggest`.
        """
        settings = self.suggest(trial, model)
        apply_dropout(model, settings, self.label)
        apply_init_scale(model, settings, self.label)
        groups = parameter_groups(model, settings, self.label)
        records.write(trial, settings={label: asdict(own) for label, own in settings.items()})  # type: ignore[arg-type]
        return groups

    def describe(self, model: nn.Module) -> str:
        """Return a table of what belongs together: label, layer, kind, weights, what is not decayed, dropout."""
        return description(model, self.label)

    def _choice(self, kind: str, label: str, acting: frozenset[str]) -> Single | None:
        choice: Choice = getattr(self, kind)
        if isinstance(choice, Mapping):
            return choice.get(label)
        return choice if kind in acting else None

    def _acting(self, model: nn.Module) -> dict[str, frozenset[str]]:
        """Say which kinds act on something in each label, and check that every setting does."""
        groups = labelled(model, self.label)
        with_scale = frozenset() if self.init_scale is None else scalable(model, groups)
        acting = {
            label: frozenset(kind for kind in _KINDS if _acts(kind, members, has_scale=label in with_scale))
            for label, members in groups.items()
        }
        for kind in _KINDS:
            choice = getattr(self, kind)
            if isinstance(choice, Mapping) and not set(choice) <= set(acting):
                raise ValueError(
                    f"`{kind}` may only name labels of the model, but got {sorted(choice)}; "
                    f"labels of the model: {sorted(acting)}."
                )
            with_one = [label for label, kinds in acting.items() if kind in kinds]
            if isinstance(choice, Mapping) and not set(choice) <= set(with_one):
                raise ValueError(
                    f"`{kind}` may only name labels with {_ACTS_ON[kind]}, but got {sorted(choice)}; "
                    f"labels with one: {sorted(with_one)}."
                )
            if kind == "dropout" and choice is not None and not with_one:
                raise ValueError(
                    "Dropout is in the space, but the model has no dropout module: add one, call "
                    "`ww_opt.add_dropout(model, names)` in `build_model`, or leave dropout out."
                )
        return acting


def _acts(kind: str, members: tuple[Layer, ...], *, has_scale: bool) -> bool:
    """Whether a setting of this kind acts on anything in these layers."""
    if kind == "dropout":
        return any(layer.dropouts for layer in members)
    if kind == "weight_decay":
        return any(layer.weights for layer in members)
    return kind != "init_scale" or has_scale


def crowding(n_parameters: int, n_trials: int) -> str:
    """Say that a search has more parameters than trials; empty where it has not."""
    if n_parameters <= n_trials:
        return ""
    return (
        f"{n_parameters} parameters are searched in {n_trials} trials: with fewer trials than parameters a search "
        "knows little more than chance. Share settings between layers (`label=by_depth`, `by_kind` or `tied`), or run "
        "more trials."
    )
