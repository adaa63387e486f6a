"""Two processes in both frameworks: rank 0 decides, all stop, weights stay the same. Minutes, hence slow."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.frameworks import framework

PRELUDE = """
import json, os, torch, optuna, warnings
import torch.distributed as dist
from optuna.distributions import FloatDistribution
warnings.simplefilter("ignore")
torch.set_num_threads(1)
import ww_opt
from ww_opt.search import records

RANK, N = int(os.environ["RANK"]), 160
PRUNER = ww_opt.SpectralPruner(n_warmup_steps=5, ranks=ww_opt.Ranks(fractions=(0.25,), n_startup_trials=2))
seen, steps, same = [], [], []

def check(model, n_steps):
    own = torch.cat([part.detach().flatten() for part in model.parameters()])
    both = [own.clone() for _ in range(2)]
    dist.all_gather(both, own)
    same.append(torch.equal(*both))
    steps.append(n_steps)

def tell(study):
    drawn = [None, None]
    dist.all_gather_object(drawn, seen)
    if RANK == 0:
        trials = [[t.state.name, records.last_step(t), len(records.read(t, "late", ()))] for t in study.trials]
        print(json.dumps({"trials": trials, "steps": steps, "same": same, "drawn": drawn}))
"""
TRAINER = """
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from ww_opt.integrations.transformers import SpectralTrainer

tokens = torch.randint(5, 48, (N, 8), generator=torch.Generator().manual_seed(0))

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, number):
        return {"input_ids": tokens[number], "labels": (tokens[number, 0] > 26).long()}

def build():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=48, **sizes))

class Mine(SpectralTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        numbers = (tokens == inputs["input_ids"][:, None]).all(-1).long().argmax(1).tolist()
        seen.append([len(steps), self.state.global_step, numbers])
        return super().training_step(model, inputs, *args, **kwargs)

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            check(self.model, self.state.global_step)

args = TrainingArguments(
    "out", per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=20, report_to=[], use_cpu=True,
    save_strategy="no", disable_tqdm=True, ddp_backend="gloo", logging_strategy="no",
)
space = ww_opt.LayerwiseSpace(
    lr=FloatDistribution(1e-4, 1e-1, log=True), init_scale=FloatDistribution(0.5, 2.0), label=ww_opt.by_depth
)
trainer = Mine(model_init=build, args=args, train_dataset=Data(), space=space, looks={"interval_steps": 5})
storage = optuna.storages.InMemoryStorage()
sampler = optuna.samplers.RandomSampler(seed=0)
trainer.hyperparameter_search(n_trials=4, storage=storage, study_name="own", pruner=PRUNER, sampler=sampler)
tell(optuna.load_study(study_name="own", storage=storage) if RANK == 0 else None)
"""
LIGHTNING = """
import functools, logging
import lightning.pytorch as L
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from ww_opt.integrations.lightning import SpectralCallback, layerwise_optimizer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
x = torch.randn(N, 40, generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(torch.arange(N), x, x[:, :3].argmax(1)), 4, shuffle=True)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))

    def training_step(self, batch, number):
        if self.training:
            seen.append([len(steps), self.trainer.global_step, batch[0].tolist()])
        return nn.functional.cross_entropy(self.net(batch[1]), batch[2])

    def configure_optimizers(self):
        return layerwise_optimizer(self, functools.partial(torch.optim.AdamW, lr=1e-3))

space = ww_opt.LayerwiseSpace(lr=FloatDistribution(1e-4, 1e-1, log=True), init_scale=FloatDistribution(0.5, 2.0))

def fit(trial):
    L.seed_everything(0, verbose=False)
    tuning = SpectralCallback(trial, space=space, looks={"interval_steps": 5})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_epochs=2, callbacks=[tuning], accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False,
        accumulate_grad_batches=2, **quiet,
    )
    module = Net()
    trainer.fit(module, tuning.loader(loader))
    check(module, trainer.global_step)
    return tuning.value

study = None
if RANK == 0:
    study = optuna.create_study(pruner=PRUNER, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(fit, n_trials=4)
else:
    for _ in range(4):
        fit(None)
tell(study)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), [("transformers", TRAINER), ("lightning", LIGHTNING)])
def test_two_processes_make_one_trial(name: str, script: str, tmp_path: Path) -> None:
    framework(name)
    (tmp_path / "script.py").write_text(PRELUDE + script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py")], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"trials"')))
    assert "PRUNED" in [state for state, *_ in said["trials"]]
    for (state, last, n_late), n_steps in zip(said["trials"], said["steps"], strict=True):
        assert last == n_steps
        assert (state == "COMPLETE") == (last == 20) == (n_late == 3)
    assert all(said["same"]), "both ranks have the same weights"
    one, two = said["drawn"]
    assert len(one) == len(two)
    for n in range(0, len(one), 2):
        step = [*one[n : n + 2], *two[n : n + 2]]
        assert len({(trial, step) for trial, step, _ in step}) == 1
        drawn = list(chain(*(numbers for *_, numbers in step)))
        assert len(drawn) == len(set(drawn)) == 16, "ranks and accumulated batches share out the examples of a step"
