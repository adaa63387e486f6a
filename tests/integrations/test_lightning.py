"""Trials in Lightning's own Trainer, without a validation loop."""

from __future__ import annotations

import copy
import functools
import logging
import math
from itertools import chain
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, TrialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ww_opt
from tests.frameworks import framework
from ww_opt.integrations.hosted import EntryBatches, Plan
from ww_opt.search import records

L = framework("lightning.pytorch")

from ww_opt.integrations.lightning import SpectralCallback, layerwise_optimizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore:::torch", "ignore:.*srun")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

N, N_EPOCHS, N_STEPS = 160, 2, 20
X = torch.randn(N, 40, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
LOADER = DataLoader(TensorDataset(torch.arange(N), X, Y), 16, shuffle=True)
SPACE = ww_opt.LayerwiseSpace(lr=FloatDistribution(1e-4, 1e-1, log=True), dropout=FloatDistribution(0.0, 0.5))
ADAM = functools.partial(torch.optim.AdamW, lr=1e-2)


class Net(L.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, build: Any = ADAM, p: float = 0.1) -> None:
        super().__init__()
        wide = [nn.Linear(40, 48), nn.ReLU(), nn.Dropout(p), nn.Linear(48, 48), nn.ReLU()]
        self.net = nn.Sequential(*wide, nn.Linear(48, 3))
        self.build, self.seen, self.rates, self.logged = build, [], [], 0

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.training:
            self.seen.append(batch[0].tolist())
            self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        loss = nn.functional.cross_entropy(self(batch[1]), batch[2])
        self.log("loss", loss)
        return loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.logged += 1
        super().log(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        optimizer = layerwise_optimizer(self, self.build)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def logits(module: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module(batch[1]), batch[2]


def callback(trial: Any, **options: Any) -> SpectralCallback:
    own = {"space": SPACE, "late": {"logits": logits}, "looks": {"interval_steps": 5}}
    return SpectralCallback(trial, **{**own, **options})


def fit(own: SpectralCallback | None, module: Any = None, loader: Any = None, **options: Any) -> Any:
    L.seed_everything(0, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [] if own is None else [own]
    trainer = L.Trainer(**{"max_epochs": N_EPOCHS, "accelerator": "cpu", "callbacks": callbacks, **quiet, **options})
    module = Net() if module is None else module
    loader = (LOADER if own is None else own.loader(LOADER)) if loader is None else loader
    trainer.fit(module, loader)
    return module


def asked(pruner: Any = None) -> optuna.Trial:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(pruner=pruner or optuna.pruners.NopPruner(), sampler=sampler).ask()


@pytest.fixture(scope="module")
def searched() -> optuna.Study:
    """Six trials, per layer, pruned, judged by latecomers; without a validation loop."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        own = callback(trial)
        fit(own)
        return own.value

    pruner = ww_opt.SpectralPruner(n_warmup_steps=5, ranks=ww_opt.Ranks(fractions=(0.25,), n_startup_trials=2))
    study = optuna.create_study(sampler=ww_opt.LayerwiseSampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=6)
    return study


class TestSearch:
    def test_trials_end_and_are_pruned(self, searched: optuna.Study) -> None:
        states = [trial.state for trial in searched.trials]
        assert states.count(TrialState.COMPLETE) >= 2
        assert states.count(TrialState.PRUNED) >= 1
        assert len(states) == 6
        assert list(searched.best_params) == ["lr/net.0", "dropout/net.0", "lr/net.3", "lr/net.5"]

    def test_records_are_those_of_an_objective(self, searched: optuna.Study) -> None:
        for trial in searched.get_trials(states=(TrialState.COMPLETE,)):
            looks = records.looks(trial)
            assert [look.step for look in looks] == [5, 10, 15, 20]
            assert {look.step: look.value for look in looks} == trial.intermediate_values
            assert trial.value == looks[-1].value
            assert [own["step"] for own in records.read(trial, "late")] == [10, 15, 18]
            assert len(records.read(trial, "late")[0]["losses"]) == 61
            assert (records.read(trial, "optimizer"), records.read(trial, "in_nats")) == ("AdamW", True)
            assert [row.name for row in looks[0].layers] == ["net.0", "net.3", "net.5"]

    def test_the_pruner_says_why(self, searched: optuna.Study) -> None:
        for trial in searched.get_trials(states=(TrialState.PRUNED,)):
            (decision,) = ww_opt.decisions(trial)
            assert (decision.rule, decision.step) == ("late", 5)
            assert records.reason(trial) == decision.words

    def test_the_pick_is_trained_on_all_from_the_start(self, searched: optuna.Study) -> None:
        for trial in (searched.best_trial, FixedTrial(searched.best_params)):
            own = callback(trial)
            module = fit(own)
            assert set(chain(*module.seen[:10])) == set(range(N))
            assert module.rates[0][0] == searched.best_params["lr/net.0"]
            assert module.net[2].p == searched.best_params["dropout/net.0"]
            assert math.isnan(own.value)


class TestLateEntry:
    @pytest.mark.parametrize(
        "options",
        [{}, {"accumulate_grad_batches": 2, "max_epochs": 4}, {"max_epochs": 4, "limit_train_batches": 5}],
    )
    @pytest.mark.parametrize("n_workers", [0, 1])
    def test_latecomers_are_trained_on_from_their_step_on(self, options: dict[str, Any], n_workers: int) -> None:
        trial = asked()
        own = callback(trial, late={"logits": logits, "shares": (0.1,), "times": (0.5,)})
        loader = DataLoader(LOADER.dataset, 16, shuffle=True, num_workers=n_workers)
        accumulate = options.get("accumulate_grad_batches", 1)
        module = fit(own, loader=own.loader(loader), **options)
        entry = ww_opt.LateEntry(N, 16 * accumulate, N_STEPS, (0.1,), (0.5,))
        assert [own["step"] for own in records.read(trial, "late")] == [10]
        assert len(module.seen) == N_STEPS * accumulate
        (cohort,) = entry.cohorts
        steps = [n // accumulate for n, numbers in enumerate(module.seen) if set(numbers) & set(cohort.tolist())]
        assert min(steps) >= 10
        assert len(set(cohort.tolist()) & set(chain(*module.seen))) >= 14

    def test_it_is_worth_what_the_same_loop_by_hand_is_worth(self) -> None:
        trial, space = asked(), ww_opt.LayerwiseSpace(lr=0.01)
        own, module = callback(trial, space=space, seed=3), Net(p=0.0)
        model = copy.deepcopy(module)
        fit(own, module)
        late = ww_opt.LateExamples(N, 16, lambda i: (i, X[i], Y[i]), logits)
        hand = asked()
        run = ww_opt.Run(hand, model, n_steps=N_STEPS, space=space, late=late, interval_steps=5)
        optimizer = run.optimizer(ADAM)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, N_STEPS)
        for index in EntryBatches(lambda: Plan(N_STEPS, N_STEPS, late=late), lambda: 0, seed=3):
            loss = nn.functional.cross_entropy(*logits(run.model, late.take(torch.tensor(index))))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            run.step(loss)
        assert own.value == pytest.approx(run.value(), rel=1e-5)

    def test_without_logits_the_modules_own_loss_judges_and_logs_nothing(self) -> None:
        trial, module = asked(), Net()
        fit(callback(trial, late=True), module)
        assert [len(own["losses"]) for own in records.read(trial, "late")] == [1, 1, 1]
        assert module.logged == N_STEPS
        assert "log" not in vars(module)

    def test_without_it_the_loader_is_the_users(self) -> None:
        trial = asked()
        own = callback(trial, late=False, looks={"interval_steps": 10, "guard": True})
        assert own.loader(LOADER) is LOADER
        module = fit(own)
        assert set(chain(*module.seen[:10])) == set(range(N))
        assert own.value == records.looks(trial)[-1].value


class TestPruning:
    def test_it_is_raised_from_the_fit(self) -> None:
        trial = asked(optuna.pruners.ThresholdPruner(upper=-100.0))
        own, module = callback(trial), Net()
        with pytest.raises(optuna.TrialPruned, match="ThresholdPruner at step 5"):
            fit(own, module)
        assert len(module.seen) == records.read(trial, "steps") == 5
        with pytest.raises(optuna.TrialPruned):
            _ = own.value

    def test_a_loss_that_is_not_finite_ends_it(self) -> None:
        module = Net()
        with torch.no_grad():
            module.net[0].weight[0, 0] = torch.nan
        with pytest.raises(optuna.TrialPruned, match="training diverged"):
            fit(callback(asked(), late=False), module)


class TestOptimizer:
    def test_schedules_act_on_all_groups(self) -> None:
        trial = asked()
        module = fit(callback(trial))
        first = [trial.params[f"lr/net.{n}"] for n in (0, 3, 5) for _ in range(2)]
        assert module.rates[0] == first
        assert module.rates[10] == pytest.approx([0.5 * rate for rate in first])

    def test_without_a_callback_it_is_the_users(self) -> None:
        module = fit(None)
        assert module.rates[0] == [0.01]
        assert set(chain(*module.seen[:10])) == set(range(N))

    def test_one_that_was_built_past_it_would_search_nothing(self) -> None:
        class Plain(Net):
            def configure_optimizers(self) -> Any:
                return ADAM(self.parameters())

        with pytest.raises(ValueError, match="did not build it on layers: return `layerwise_optimizer"):
            fit(callback(asked()), Plain())
        trial = asked()
        fit(callback(trial, space=None), Plain())
        assert records.read(trial, "optimizer") == "AdamW"


def test_a_loss_that_is_no_cross_entropy_is_told_from_its_graph() -> None:
    class Squares(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[1]), batch[1][:, :3])

    trial = asked()
    fit(callback(trial, late=True), Squares())
    assert records.read(trial, "in_nats") is False


class TestMisuse:
    def test_a_loader_that_was_not_asked_for(self) -> None:
        with pytest.raises(ValueError, match=r"tuning\.loader\(train_loader\)"):
            fit(callback(asked()), loader=LOADER)

    def test_a_loader_without_its_callback(self) -> None:
        with pytest.raises(ValueError, match=r"callbacks=\[tuning\]"):
            fit(None, loader=callback(asked()).loader(LOADER))

    def test_optimization_by_hand(self) -> None:
        module = Net()
        module.automatic_optimization = False
        with pytest.raises(ValueError, match="Net optimizes by hand"):
            fit(callback(asked()), module)

    def test_sharded_weights(self) -> None:
        class FSDPStrategy(L.strategies.SingleDeviceStrategy):  # type: ignore[misc,name-defined]
            pass

        with pytest.raises(ValueError, match="FSDPStrategy shards them"):
            fit(callback(asked()), strategy=FSDPStrategy("cpu"))

    def test_a_run_without_end(self) -> None:
        with pytest.raises(ValueError, match="give `max_steps`"):
            fit(callback(asked()), max_epochs=-1)

    def test_a_checkpoint(self, tmp_path: Any) -> None:
        module = fit(None, max_epochs=1)
        file = tmp_path / "kept.ckpt"
        module.trainer.save_checkpoint(file)
        own = callback(asked(), space=None, late=False)
        trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[own], logger=False, enable_progress_bar=False)
        with pytest.raises(ValueError, match="`ckpt_path` lets it go on from step 10"):
            trainer.fit(Net(), LOADER, ckpt_path=file)
