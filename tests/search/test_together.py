"""Two processes train one trial: rank 0 suggests, judges and decides, and both stop together."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import ThresholdPruner
from optuna.trial import TrialState
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import ww_opt
from tests import tiny
from ww_opt.search.together import RankZeroFailed, Together
from ww_opt.study.storages import open_storage

N_STEPS, INTERVAL_STEPS = 8, 2
N_TRIALS = 4


def _objective(together: Together, trial: optuna.Trial | None, kind: str) -> dict[str, Any]:
    def suggested() -> float:
        assert trial is not None, "rank 0 alone is asked"
        if kind == "fails":
            raise MemoryError("mine")
        return trial.suggest_float("lr", 1e-3, 1e-1, log=True)

    lr = together.agree(suggested)
    torch.manual_seed(together.rank)  # what differs at first is made equal by DDP, and stays so
    model = DistributedDataParallel(tiny.build_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    # guards of its own would read rank 0's data alone
    run = together.agree_on_zero(
        lambda: ww_opt.Run(trial, model.module, n_steps=N_STEPS, interval_steps=INTERVAL_STEPS)  # type: ignore[arg-type]
    )
    assert (run is not None) == together.is_zero
    done = 0
    try:
        for step in range(N_STEPS):
            x = torch.randn(16, 40, generator=torch.Generator().manual_seed(2 * step + together.rank))
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(dim=1))
            if kind == "diverges" and together.is_zero and step == 4:
                loss = loss * float("nan")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            together.step(run, loss)
        value = together.agree(lambda: run.value() if run is not None else None)
        ended = "complete"
    except optuna.TrialPruned as error:
        value, ended = None, f"pruned: {error}"
    weights = [parameter.double().sum().item() for parameter in model.parameters()]
    return {"lr": lr, "done": done, "value": value, "ended": ended, "weights": weights}


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    together = Together()
    study = None
    if together.is_zero:
        storage = open_storage(str(folder / "a.journal"))
        study = optuna.create_study(study_name="a", storage=storage, pruner=ThresholdPruner(upper=1e9))
    found = []
    for kind in ("plain", "plain", "diverges", "fails"):
        trial = study.ask() if study is not None else None
        try:
            said = _objective(together, trial, kind)
        except (RankZeroFailed, MemoryError) as error:
            said = {"ended": f"{type(error).__name__}: {error}", "value": None}
        if study is not None and trial is not None:
            ended = str(said["ended"]).partition(":")[0]
            state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(ended, TrialState.FAIL)
            study.tell(trial, said["value"], state=state)
        found.append(said)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()  # nobody hangs up on who still talks
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends: no matter of ours


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_have_the_settings_and_the_value_of_rank_0(both: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    folder, (zero, one) = both
    for of_zero, of_one in zip(zero[:2], one[:2], strict=True):
        assert of_zero == of_one, "the weights, too"
        assert of_zero["ended"] == "complete"
        assert of_zero["done"] == N_STEPS
    assert zero[0]["lr"] != zero[1]["lr"]
    study = optuna.load_study(study_name="a", storage=open_storage(str(folder / "a.journal")))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[0].value == zero[0]["value"]
    assert set(study.trials[0].intermediate_values) == {2, 4, 6, 8}


def test_all_ranks_stop_at_one_step_for_one_reason(both: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    _, (zero, one) = both
    assert zero[2]["ended"] == one[2]["ended"]
    assert zero[2]["ended"].startswith("pruned: the training loss became nan")
    assert zero[2]["done"] == one[2]["done"] < N_STEPS


def test_what_rank_0_raises_ends_the_others_with_its_words(both: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    _, (zero, one) = both
    assert zero[3]["ended"] == "MemoryError: mine"
    assert one[3]["ended"] == "RankZeroFailed: rank 0 raised MemoryError: mine"


def test_without_a_group_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"init_process_group.*torchrun"):
        Together()
