"""What every objective owes to those who run it. One class; a new file in `objectives/` needs no new test."""

import importlib
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import nn

import objectives
from ww_opt.search.space import LayerwiseSpace
from ww_opt.training.layerwise import apply_dropout, labelled, parameter_groups
from ww_opt.training.run import train
from ww_opt.training.task import Task

FOLDER = Path(objectives.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
N_FEW = 96


class Spy(nn.Module):
    """Wraps a model and keeps what goes in and comes out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[torch.Tensor] = []
        self.said: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        self.seen.append(x)
        self.said.append(logits.detach())
        self.modes.append(self.model.training)
        return logits


def build(task: Task, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return task.build_model()


def keys(batches: list[torch.Tensor]) -> list[bytes]:
    """One key an example, in the order of the batches."""
    return [row.numpy().tobytes() for batch in batches for row in batch]


def labels(task: Task) -> dict[bytes, torch.Tensor]:
    """Training labels by the example they belong to."""
    batches = list(task.epoch())
    found = dict(zip(keys([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]), strict=True))
    assert len(found) == sum(len(batch) for batch in batches)
    return found


def trained_weights(task: Task, space: LayerwiseSpace, params: dict[str, Any]) -> torch.Tensor:
    model = build(task)
    settings = space.suggest(optuna.trial.FixedTrial(params), model)
    apply_dropout(model, settings, space.label)
    for _ in train(model, task, parameter_groups(model, settings, space.label), n_steps=3, interval_steps=3):
        pass
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Modules that importing each objective loads beyond what `ww_opt` itself does, in a fresh interpreter."""
    code = (
        "import importlib, json, sys\n"
        "import ww_opt.search.space, ww_opt.training.run\n"
        "result = {}\n"
        "for name in sys.argv[1:]:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(f'objectives.{name}')\n"
        "    result[name] = sorted(set(sys.modules) - before)\n"
        "print(json.dumps(result))"
    )
    command = [sys.executable, "-c", code, *NAMES]
    run = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    loaded: dict[str, list[str]] = json.loads(run.stdout)
    return loaded


def middle_and_end(distribution: BaseDistribution) -> tuple[float, float]:
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    return (math.sqrt(low * high) if distribution.log else (low + high) / 2), high


@pytest.fixture(scope="class")
def module(name: str) -> ModuleType:
    return importlib.import_module(f"objectives.{name}")


@pytest.fixture(scope="class")
def task(module: ModuleType) -> Task:
    task: Task = module.make_task()
    return task


@pytest.fixture(scope="class")
def learnt(module: ModuleType, task: Task) -> tuple[nn.Module, float, float]:
    """A model after 60 steps at the defaults; its clean training loss before and after."""
    model = build(task)
    groups = [{"params": list(model.parameters())}]
    (checkpoint,) = train(model, task, groups, n_steps=60, interval_steps=60)
    return model, checkpoint.first_loss, checkpoint.train_loss


def test_there_are_objectives() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES, scope="class")
class TestObjective:
    def test_importing_loads_no_data(self, name: str, imported: dict[str, list[str]]) -> None:
        packages = {module.partition(".")[0] for module in imported[name]}
        third_party = packages - sys.stdlib_module_names - {"objectives", "ww_opt"}
        assert not third_party
        assert "pydoc_data" not in packages

    def test_it_exports_a_task_a_space_and_a_length(self, name: str, module: ModuleType, task: Task) -> None:
        assert isinstance(task, Task)
        assert task.name == name
        assert isinstance(module.SPACE, LayerwiseSpace)
        assert 1 <= module.INTERVAL_STEPS <= module.N_STEPS
        assert module.N_STEPS % module.INTERVAL_STEPS == 0

    def test_the_same_seed_builds_the_same_weights(self, task: Task) -> None:
        first, again, other = (nn.utils.parameters_to_vector(build(task, s).parameters()) for s in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_epochs_hold_the_same_examples_in_another_order(self, task: Task) -> None:
        first, second = ([batch.x for batch in task.epoch()] for _ in range(2))
        assert len(first) == len(second) == task.steps_per_epoch
        assert keys(first) != keys(second)
        assert sorted(keys(first)) == sorted(keys(second))

    def test_the_loss_starts_near_chance(self, task: Task) -> None:
        spy, batch = Spy(build(task)), next(task.epoch())
        loss = task.loss(spy, batch).detach()
        chance = math.log(spy.said[0].shape[-1])
        assert torch.equal(spy.seen[0], batch.x)
        assert loss.ndim == 0
        assert float(loss) == pytest.approx(chance, rel=0.1)

    def test_sixty_steps_lower_the_loss(self, learnt: tuple[nn.Module, float, float]) -> None:
        _, before, after = learnt
        assert after < 0.98 * before

    def test_every_suggested_parameter_acts(self, module: ModuleType, task: Task) -> None:
        parameters = module.SPACE.parameters(build(task))
        middle = {name: middle_and_end(distribution)[0] for name, distribution in parameters.items()}
        usual = trained_weights(task, module.SPACE, middle)
        assert torch.equal(usual, trained_weights(task, module.SPACE, middle))
        dead = [
            name
            for name, distribution in parameters.items()
            if torch.equal(
                usual, trained_weights(task, module.SPACE, {**middle, name: middle_and_end(distribution)[1]})
            )
        ]
        assert not dead

    def test_a_study_asks_for_every_parameter(self, module: ModuleType, task: Task) -> None:
        trial = optuna.create_study().ask()
        module.SPACE.suggest(trial, build(task))
        assert trial.distributions == module.SPACE.parameters(build(task))
        assert {name.partition("/")[0] for name in trial.params} == {"lr", "weight_decay", "dropout"}

    def test_dropout_lies_between_all_layers_but_the_last(self, module: ModuleType, task: Task) -> None:
        members = labelled(build(task), module.SPACE.label)
        without = [label for label, group in members.items() if not any(layer.dropouts for layer in group)]
        assert list(members)[-1] in without
        assert len(without) <= len(members) / 2

    @pytest.mark.parametrize("mode", [True, False])
    def test_evaluate_looks_in_eval_mode_and_puts_the_mode_back(self, task: Task, mode: bool) -> None:
        assert task.evaluate is not None
        spy = Spy(build(task))
        spy.train(mode)
        next(iter(spy.model.children())).train(not mode)
        before = [module.training for module in spy.modules()]
        accuracy = task.evaluate(spy)
        assert isinstance(accuracy, float)
        assert 0.0 <= accuracy <= 1.0
        assert not any(spy.modes)
        assert [module.training for module in spy.modules()] == before

    def test_training_pays_off_on_the_sealed_examples(self, task: Task, learnt: tuple[nn.Module, float, float]) -> None:
        assert task.evaluate is not None
        assert task.evaluate(learnt[0]) > 1.2 * task.evaluate(build(task))

    def test_sealed_examples_are_none_of_the_training_examples(self, task: Task) -> None:
        assert task.evaluate is not None
        spy = Spy(build(task))
        task.evaluate(spy)
        assert len(keys(spy.seen)) >= 100
        assert not set(keys(spy.seen)) & labels(task).keys()

    def test_label_noise_replaces_the_asked_share_by_wrong_classes(self, module: ModuleType, task: Task) -> None:
        clean, noisy = labels(task), labels(module.make_task(label_noise=0.25))
        assert clean.keys() == noisy.keys()
        changed = torch.stack([clean[key] != noisy[key] for key in clean]).float().mean()
        assert float(changed) == pytest.approx(0.25, abs=1e-3)
        again, other = labels(module.make_task(label_noise=0.25)), labels(module.make_task(label_noise=0.25, seed=1))
        assert all(torch.equal(noisy[key], again[key]) for key in clean)
        assert any(not torch.equal(noisy[key], other[key]) for key in clean)

    def test_label_noise_leaves_the_sealed_labels_alone(
        self, module: ModuleType, task: Task, learnt: tuple[nn.Module, float, float]
    ) -> None:
        noisy = module.make_task(label_noise=0.9)
        next(noisy.epoch())
        assert task.evaluate is not None
        assert noisy.evaluate(learnt[0]) == task.evaluate(learnt[0])

    def test_n_train_keeps_so_many_examples(self, module: ModuleType, task: Task) -> None:
        few, everything = labels(module.make_task(n_train=N_FEW)), labels(task)
        assert len(few) == N_FEW < len(everything)
        assert all(torch.equal(few[key], everything[key]) for key in few)
        assert few.keys() != labels(module.make_task(n_train=N_FEW, seed=1)).keys()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("label_noise", 1.5),
            ("label_noise", -0.1),
            ("label_noise", math.nan),
            ("n_train", 0),
            ("n_train", 10**9),
            ("batch_size", 0),
            ("width", 0),
        ],
    )
    def test_a_bad_option_is_named_with_its_value(self, module: ModuleType, option: str, value: float) -> None:
        if option not in inspect.signature(module.make_task).parameters:
            return
        with pytest.raises(ValueError, match=f"{option}={value}"):
            module.make_task(**{option: value})
