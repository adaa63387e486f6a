"""Trials in Hugging Face's own Trainer, on models that are built here: no evaluation set, no download."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, TrialState
from torch import nn
from torch.utils.data import IterableDataset

import ww_opt
from tests.frameworks import framework
from ww_opt.integrations.hosted import EntryBatches, Plan
from ww_opt.reporting.closing_text import closing_text
from ww_opt.search import records
from ww_opt.study.closing import closing

hf = framework("transformers", "BertModel", "Trainer")
framework("accelerate")

from ww_opt.integrations.transformers import SpectralMixin, SpectralTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::accelerate", "ignore:::torch")

N, N_STEPS = 160, 20
TOKENS = torch.stack([torch.arange(N) // 20 + 5, torch.arange(N) % 20 + 5], 1)  # an example's tokens tell its number
TOKENS = torch.cat([TOKENS, torch.randint(5, 40, (N, 6), generator=torch.Generator().manual_seed(0))], 1)
LABELS = (TOKENS[:, 2] > 22).long()
DATA = [{"input_ids": tokens, "labels": label} for tokens, label in zip(TOKENS, LABELS, strict=True)]
SPACE = ww_opt.LayerwiseSpace(
    lr=FloatDistribution(1e-4, 1e-1, log=True), dropout=FloatDistribution(0.0, 0.3), label=ww_opt.by_depth
)
SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
LATE = ww_opt.LateExamples(
    N,
    16,
    lambda index: {"input_ids": TOKENS[index], "labels": LABELS[index]},
    lambda model, batch: (model(**batch).logits, batch["labels"]),
)


def bert() -> Any:
    return hf.BertForSequenceClassification(hf.BertConfig(**SIZES))


def bert_with(**options: Any) -> Callable[[], Any]:
    return lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES | options))


WIDE = bert_with(hidden_size=32)  # spectra judge layers at least 32 wide


def arguments(folder: Path, **options: Any) -> Any:
    own = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "max_steps": N_STEPS,
        "learning_rate": 1e-2,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return hf.TrainingArguments(**{**own, **options})


class Seen(SpectralMixin, hf.Trainer):  # type: ignore[misc,name-defined]
    """A Trainer of somebody's own, which remembers the numbers of the examples of each optimizer step."""

    seen: list[list[int]]
    rates: list[list[float]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = (20 * (inputs["input_ids"][:, 0] - 5) + inputs["input_ids"][:, 1] - 5).tolist()
        if self.state.global_step == len(self.seen):
            self.seen.append([])
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        self.seen[-1] += numbers
        return super().training_step(model, inputs, *args, **kwargs)


def trainer(folder: Path, build: Callable[[], Any] = bert, arguments_: Any = None, **options: Any) -> Any:
    own = {
        "model_init": build,
        "args": arguments(folder) if arguments_ is None else arguments_,
        "train_dataset": DATA,
        "space": SPACE,
        "looks": {"interval_steps": 5},
    }
    made = Seen(**{**own, **options})
    made.seen, made.rates = [], []
    return made


def asked(study: optuna.Study | None = None) -> optuna.Trial:
    own = optuna.create_study(pruner=optuna.pruners.NopPruner(), sampler=optuna.samplers.RandomSampler(seed=0))
    return (own if study is None else study).ask()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, optuna.Study, Any]:
    """Six trials, per layer, pruned, judged by latecomers; without an evaluation set."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    own = trainer(tmp_path_factory.mktemp("hf"))
    assert own.eval_dataset is None
    best = own.hyperparameter_search(
        backend="optuna",
        n_trials=6,
        storage=storage,
        study_name="searched",
        pruner=ww_opt.SpectralPruner(n_warmup_steps=5, ranks=ww_opt.Ranks(fractions=(0.25,), n_startup_trials=2)),
        sampler=ww_opt.LayerwiseSampler(seed=0),
    )
    return own, optuna.load_study(study_name="searched", storage=storage), best


class TestSearch:
    def test_it_runs_without_an_evaluation_set(self, searched: Any) -> None:
        _, study, best = searched
        states = [trial.state for trial in study.trials]
        assert states.count(TrialState.COMPLETE) >= 2
        assert states.count(TrialState.PRUNED) >= 1
        assert len(states) == 6
        assert (int(best.run_id), best.objective) == (study.best_trial.number, study.best_value)

    def test_settings_are_per_layer(self, searched: Any) -> None:
        _, study, best = searched
        labels = ("stem", "bert.encoder.layer.0", "bert.encoder.layer.1", "head")
        assert set(best.hyperparameters) == {f"{kind}/{label}" for label in labels for kind in ("lr", "dropout")}
        assert best.hyperparameters == study.best_params

    def test_records_are_those_of_an_objective(self, searched: Any) -> None:
        _, study, _ = searched
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            looks = records.looks(trial)
            assert [look.step for look in looks] == [5, 10, 15, 20]
            assert {look.step: look.value for look in looks} == trial.intermediate_values
            assert trial.value == looks[-1].value
            assert [own["step"] for own in records.read(trial, "late")] == [10, 15, 18]
            assert len(records.read(trial, "late")[0]["losses"]) == 61, "by logits"
            assert records.read(trial, "optimizer") == "AdamW"
            assert records.read(trial, "in_nats") is True
            assert set(records.read(trial, "settings")) == {own.partition("/")[2] for own in trial.params}

    def test_the_pruner_says_why(self, searched: Any) -> None:
        _, study, _ = searched
        for trial in study.get_trials(states=(TrialState.PRUNED,)):
            (decision,) = ww_opt.decisions(trial)
            assert (decision.rule, decision.step) == ("late", 5)
            assert records.reason(trial) == decision.words
            assert records.read(trial, "steps") == 5

    def test_closing_text_and_importance_read_it(self, searched: Any) -> None:
        _, study, best = searched
        task = ww_opt.Task(bert, [], lambda model, batch: model(**batch).loss, late_entry=LATE)
        objective = ww_opt.SpectralObjective(task, SPACE, n_steps=N_STEPS, guard="late")
        found = closing(ww_opt.Study(name="searched", objective=objective, n_trials=6, start=False), study)
        text = closing_text(found, records.read(study.best_trial, "settings"))
        assert f"The pick: trial {best.run_id}, score" in text
        n_pruned = len(study.get_trials(states=(TrialState.PRUNED,)))
        assert f"(trials ended by each rule: late {n_pruned})" in text
        assert found.look is not None
        assert {row.name for row in found.look.layers} >= {"classifier"}
        assert found.importance is not None

    def test_the_first_loss_is_that_of_the_model_as_it_was_built(self, searched: Any) -> None:
        _, study, _ = searched
        assert len({records.read(trial, "first_loss") for trial in study.trials}) == 1
        assert records.read(study.trials[0], "first_loss") == pytest.approx(0.69, abs=0.05)

    def test_the_pick_is_trained_on_all_from_the_start(self, searched: Any) -> None:
        own, _, best = searched
        own.seen, own.rates, own.objective = [], [], 7.0
        own.train(trial=FixedTrial(best.hyperparameters))
        assert set(chain(*own.seen[:10])) == set(range(N))
        assert own.rates[0][0] == best.hyperparameters["lr/stem"]
        assert {m.p for m in own.model.bert.encoder.layer[0].modules() if isinstance(m, nn.Dropout)} == {
            best.hyperparameters["dropout/bert.encoder.layer.0"]
        }
        assert own.objective == 7.0, "it is not judged"


class TestLateEntry:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
            {"dataloader_num_workers": 1, "max_steps": -1, "num_train_epochs": 1.95},
        ],
    )
    def test_latecomers_are_trained_on_from_their_step_on(self, options: dict[str, Any], tmp_path: Path) -> None:
        own, trial = trainer(tmp_path, arguments_=arguments(tmp_path, **options)), asked()
        own.train(trial=trial)
        entry = ww_opt.LateEntry(N, 16, N_STEPS)
        assert len(own.seen) == own.state.global_step == N_STEPS
        assert [own["step"] for own in records.read(trial, "late")] == list(entry.steps)
        assert min(map(len, own.seen)) >= 16
        for cohort, first in zip(entry.cohorts, entry.steps, strict=True):
            steps = [step for step, numbers in enumerate(own.seen) if set(numbers) & set(cohort.tolist())]
            assert all(step >= first for step in steps)
        assert len(set(entry.cohorts[0].tolist()) & set(chain(*own.seen))) >= 7, "half of the run is an epoch"
        assert len(set(chain(*own.seen[:5]))) == sum(map(len, own.seen[:5])), "each example once an epoch"

    def test_it_is_worth_what_the_same_loop_by_hand_is_worth(self, tmp_path: Path) -> None:
        build = bert_with(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = arguments(tmp_path, lr_scheduler_type="constant", max_grad_norm=0.0, seed=3)
        space = ww_opt.LayerwiseSpace(lr=0.01)
        own, trial = trainer(tmp_path, build, args, space=space), asked()
        own.train(trial=trial)

        hf.set_seed(3)
        hand = asked()
        run = ww_opt.Run(hand, build(), n_steps=N_STEPS, space=space, late=LATE, interval_steps=5)
        optimizer = run.optimizer(functools.partial(torch.optim.AdamW, weight_decay=0.0))
        run.model.train()
        for index in EntryBatches(lambda: Plan(N_STEPS, N_STEPS, late=LATE), lambda: 0, seed=3):
            loss = run.model(**LATE.take(torch.tensor(index))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        assert own.objective == pytest.approx(run.value(), rel=1e-4)
        for found, expected in zip(records.looks(trial), records.looks(hand), strict=True):
            assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-4)

    def test_without_it_the_trainers_own_batches_are_drawn(self, tmp_path: Path) -> None:
        own, trial = trainer(tmp_path, WIDE, late=False, looks={"interval_steps": 10, "guard": True}), asked()
        own.train(trial=trial)
        assert set(chain(*own.seen[:10])) == set(range(N))
        assert records.read(trial, "late") is None
        assert own.objective == records.looks(trial)[-1].value

    def test_shares_and_times_may_be_given(self, tmp_path: Path) -> None:
        own, trial = trainer(tmp_path, late={"shares": (0.1,), "times": (0.7,)}), asked()
        own.train(trial=trial)
        assert [own["step"] for own in records.read(trial, "late")] == [14]


def gpt2() -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    )


TEXT = [{"input_ids": tokens, "labels": tokens} for tokens in TOKENS]
SEVERAL = [{"input_ids": own, "labels": torch.stack([y, 1 - y]).float()} for own, y in zip(TOKENS, LABELS, strict=True)]
NUMBERS = [{"input_ids": tokens, "labels": tokens[2].float() / 40} for tokens in TOKENS]


@pytest.mark.parametrize(
    ("build", "data", "n_losses", "n_labels"),
    [
        (gpt2, TEXT, 61, 7 * 8),
        (bert_with(problem_type="multi_label_classification"), SEVERAL, 61, 2 * 8),
        (bert_with(num_labels=1), NUMBERS, 1, 8),
    ],
    ids=["tokens", "several", "numbers"],
)
def test_cohorts_judge_by_what_gives_the_trainers_loss(
    build: Any, data: Any, n_losses: int, n_labels: int, tmp_path: Path
) -> None:
    own, trial = trainer(tmp_path, build, train_dataset=data), asked()
    own.train(trial=trial)
    judged = records.read(trial, "late")[0]
    assert (len(judged["losses"]), judged["n"]) == (n_losses, n_labels)
    assert records.read(trial, "in_nats") is (n_losses > 1)


def test_label_smoothing_is_judged_by_the_smoothed_loss(tmp_path: Path) -> None:
    own, trial = trainer(tmp_path, arguments_=arguments(tmp_path, label_smoothing_factor=0.3)), asked()
    own.train(trial=trial)
    assert len(records.read(trial, "late")[0]["losses"]) == 1


class TestPruning:
    def pruned(self, folder: Path, **options: Any) -> tuple[Any, optuna.trial.FrozenTrial]:
        study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=-100.0))
        own = trainer(folder, **options)
        trial = study.ask()
        with pytest.raises(optuna.TrialPruned, match="ThresholdPruner at step 5"):
            own.train(trial=trial)
        return own, study.trials[0]

    def test_it_ends_the_run_and_the_trainer_goes_on(self, tmp_path: Path) -> None:
        ends: list[int] = []

        class Ends(hf.TrainerCallback):  # type: ignore[misc,name-defined]
            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                ends.append(state.global_step)

        own, trial = self.pruned(tmp_path, callbacks=[Ends()])
        assert ends == [5], "the other callbacks end as usual"
        assert records.read(trial, "steps") == 5
        own.train(trial=asked())
        assert ends == [5, 20]

    def test_what_an_evaluation_says_is_no_report_and_comes_no_more(self, tmp_path: Path) -> None:
        args = arguments(tmp_path, eval_strategy="steps", eval_steps=1)
        _, trial = self.pruned(tmp_path, arguments_=args, eval_dataset=DATA[:16])
        assert list(trial.intermediate_values) == [5]
        storage = optuna.storages.InMemoryStorage()
        own = trainer(tmp_path, arguments_=args, eval_dataset=DATA[:16])
        own.hyperparameter_search(n_trials=1, storage=storage, study_name="own")
        (trial,) = optuna.load_study(study_name="own", storage=storage).trials
        assert list(trial.intermediate_values) == [5, 10, 15, 20]
        assert trial.value == trial.intermediate_values[20]
        assert sum("eval_loss" in own for own in own.state.log_history) == N_STEPS

    def test_a_loss_that_is_not_finite_ends_it(self, tmp_path: Path) -> None:
        def broken() -> Any:
            model = bert()
            with torch.no_grad():
                model.classifier.weight[0, 0] = torch.nan
            return model

        own = trainer(tmp_path, broken, late=False)
        with pytest.raises(optuna.TrialPruned, match="training diverged"):
            own.train(trial=asked())


class TestOptimizer:
    def test_groups_are_those_of_layers_and_schedules_act_on_all(self, tmp_path: Path) -> None:
        args = arguments(tmp_path, lr_scheduler_type="linear", weight_decay=0.05, adam_beta2=0.9)
        own, trial = trainer(tmp_path, arguments_=args), asked()
        own.train(trial=trial)
        groups = {group["name"]: group for group in own.optimizer.param_groups}
        assert {name: group["weight_decay"] for name, group in groups.items()} == {
            name: 0.0 if name.endswith("no_decay") else 0.05 for name in groups
        }
        first = [trial.params[f"lr/{name.removesuffix(':no_decay')}"] for name in groups]
        assert own.rates[0] == first
        assert own.rates[10] == pytest.approx([0.5 * rate for rate in first])
        assert {group["betas"][1] for group in groups.values()} == {0.9}

    def test_weight_decay_and_momentum_may_be_searched(self, tmp_path: Path) -> None:
        space = ww_opt.LayerwiseSpace(weight_decay=0.3, momentum=0.5, label=ww_opt.tied)
        own = trainer(tmp_path, space=space)
        own.train(trial=asked())
        weights, others = own.optimizer.param_groups
        assert (weights["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
        assert [group["betas"][0] for group in (weights, others)] == [0.5, 0.5]

    def test_without_a_space_it_is_the_trainers(self, tmp_path: Path) -> None:
        own, trial = trainer(tmp_path, space=None), asked()
        own.train(trial=trial)
        assert (trial.params, records.read(trial, "optimizer")) == ({}, "AdamW")
        assert [len(group["params"]) for group in own.optimizer.param_groups] != []
        assert own.rates[0] == [0.01, 0.01]

    def test_a_given_one_would_not_be_searched(self, tmp_path: Path) -> None:
        model = bert()
        given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
        own = trainer(tmp_path, model=model, model_init=None, optimizers=given)
        with pytest.raises(ValueError, match="has one already: leave `optimizers` out"):
            own.train(trial=asked())

    def test_one_that_makes_its_own_groups_is_refused(self, tmp_path: Path) -> None:
        own = trainer(tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {"params": [], "lr": 0.1}))
        with pytest.raises(ValueError, match="need an optimizer that takes groups, but SGD is given its own"):
            own.train(trial=asked())


def test_without_a_trial_it_is_the_trainer_itself(tmp_path: Path) -> None:
    weights = []
    for kind in (SpectralTrainer, hf.Trainer):
        options = {"space": SPACE} if kind is SpectralTrainer else {}
        own = kind(model_init=bert, args=arguments(tmp_path), train_dataset=DATA, **options)
        own.train()
        weights.append(torch.cat([part.detach().flatten() for part in own.model.parameters()]))
    assert torch.equal(*weights)


def test_fields_of_the_arguments_may_be_searched_beside_layers(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    own = trainer(tmp_path)
    own.hyperparameter_search(
        hp_space=lambda trial: {"max_steps": trial.suggest_int("max_steps", 8, 9)},
        n_trials=2,
        storage=storage,
        study_name="both",
    )
    for trial in optuna.load_study(study_name="both", storage=storage).trials:
        assert {"max_steps", "lr/stem"} <= set(trial.params)
        assert records.last_step(trial) == trial.params["max_steps"]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)


class TestMisuse:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"compute_objective": lambda metrics: 0.0}, "got a `compute_objective`"),
            ({"backend": "ray"}, "Trials are Optuna's, but got backend='ray'"),
        ],
    )
    def test_of_the_search(self, options: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=words):
            trainer(tmp_path).hyperparameter_search(**options)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
            ({"train_sampling_strategy": "group_by_length"}, "groups them by length"),
        ],
    )
    def test_of_the_arguments(self, options: Any, words: str, tmp_path: Path) -> None:
        own = trainer(tmp_path, arguments_=arguments(tmp_path, **options))
        with pytest.raises(ValueError, match=words):
            own.train(trial=asked())

    def test_examples_without_numbers_do_not_join_late(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="those of Endless have none"):
            trainer(tmp_path, train_dataset=Endless()).train(trial=asked())
        own = trainer(tmp_path, WIDE, train_dataset=Endless(), late=False)
        own.train(trial=asked())
        assert own.objective is not None

    def test_a_trial_does_not_go_on_from_a_checkpoint(self, tmp_path: Path) -> None:
        args = arguments(tmp_path, save_strategy="steps", save_steps=10)
        trainer(tmp_path, arguments_=args).train()
        with pytest.raises(ValueError, match="A trial begins at step 0"):
            trainer(tmp_path).train(str(tmp_path / "checkpoint-10"), trial=asked())

    def test_sharded_weights_are_refused(self, tmp_path: Path) -> None:
        own = trainer(tmp_path)
        train = own.get_train_dataloader
        own.is_fsdp_enabled, own._asked_trial = True, asked()
        with pytest.raises(ValueError, match="FSDP shards them"):
            train()
