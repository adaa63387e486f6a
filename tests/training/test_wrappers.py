"""A layer has one name, whatever the model is wrapped in, and its weights load with and without."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from ww_opt.spectral.diagnostics import diagnose
from ww_opt.training.dropout import add_dropout
from ww_opt.training.layerwise import LayerSettings, apply_dropout, labelled, layers, parameter_groups
from ww_opt.training.wrappers import innermost, load_plain_state, plain_state


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 40), nn.BatchNorm1d(40), nn.Dropout(0.1), nn.Sequential(nn.Linear(40, 34)))


def compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return wrapped


def inner(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[3] = checkpoint_wrapper(model[3])
    model[0] = compiled(model[0])
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(compiled(model)),
    "both the other way round": lambda model: compiled(nn.DataParallel(model)),
    "inside": inner,
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


@wrapped
class TestNames:
    def test_are_those_of_the_plain_model(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        assert layers(wrap(plain())) == layers(plain())

    def test_are_those_of_the_diagnosis(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = wrap(plain())
        assert [row.name for row in diagnose(model)] == [layer.name for layer in layers(model)]

    def test_name_the_same_tensors(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = plain()
        expected = dict(model.named_parameters())
        own = wrap(model)
        groups = parameter_groups(own, dict.fromkeys(labelled(own), LayerSettings(lr=0.1)))
        found = {name: parameter for group in groups for name, parameter in group["params"]}
        assert set(found) == set(expected)
        assert all(found[name] is expected[name] for name in found)

    def test_dropout_is_found_by_them(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = plain()
        dropout = model[2]  # type: ignore[index]
        own = add_dropout(wrap(model), ["3"], p=0.25)
        apply_dropout(own, {"0": LayerSettings(dropout=0.5)})
        assert dropout.p == 0.5
        assert layers(own)[1].dropouts == ("3",)

    def test_weights_load_with_and_without(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        source, target, other = plain(), plain(), wrap(plain())
        state = plain_state(wrap(source))
        target.load_state_dict(state)
        load_plain_state(other, state)
        assert all(torch.equal(state[name], value) for name, value in target.state_dict().items())
        assert all(torch.equal(plain_state(other)[name], value) for name, value in state.items())


@wrapped
def test_the_model_inside_is_found(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = plain()
    assert innermost(wrap(model)) is model


def test_a_child_that_the_user_calls_module_keeps_its_name_in_the_file() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 4)

    assert set(plain_state(Own())) == {"module.weight", "module.bias"}
    Own().load_state_dict(plain_state(Own()))
