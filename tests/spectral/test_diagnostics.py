"""The table of a model: columns, findings, robustness, invariances, and WeightWatcher's numbers."""

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ww_opt.spectral import Finding, diagnose
from ww_opt.spectral.rows import Convention, Diagnosis

CONTRACT = [
    "name",
    "kind",
    "N",
    "M",
    "Q",
    "alpha",
    "xmin",
    "xmax",
    "D",
    "sigma",
    "n_tail",
    "spikes",
    "traps",
    "stable_rank",
    "rank_loss",
    "finding",
]
REFERENCE = Path(__file__).parent / "weightwatcher_0.7.7.json"


def linear(W: torch.Tensor) -> nn.Module:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight = nn.Parameter(W)
    return nn.Sequential(layer)


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def learnt(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Noise plus a power-law signal well beyond its edge."""
    u, _ = torch.linalg.qr(noise(rows, 20, seed + 1))
    v, _ = torch.linalg.qr(noise(columns, 20, seed + 2))
    strength = 6 * (rows * columns) ** 0.25 * torch.arange(1, 21) ** -0.5
    return noise(rows, columns, seed) + (u * strength) @ v.T


def the_row(model: nn.Module, **options):
    (row,) = diagnose(model, **options)
    return row


def test_columns_of_the_contract() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(4, 8, 5), nn.Conv3d(2, 4, 3), nn.Linear(40, 50))
    frame = diagnose(model).to_frame()
    assert set(CONTRACT) <= set(frame.columns)
    assert list(frame["name"]) == ["0", "1", "2", "3"]
    assert list(frame["kind"]) == ["conv2d", "conv1d", "conv3d", "linear"]
    assert list(frame["M"]) == [3, 4, 2, 40]
    assert frame["Q"].iloc[3] == pytest.approx(1.25)
    json.dumps(frame.to_dict("records"))


def test_nothing_of_the_model_changes() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Dropout(0.1)).train()
    before = copy.deepcopy(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    diagnose(model, randomize=True, mp_fit=True, erg=True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert attributes == [set(vars(module)) for module in model.modules()]
    assert model.training


def test_noise_has_moved_little_and_a_signal_is_learnt() -> None:
    assert Finding.MOVED_LITTLE in the_row(linear(noise(200, 150))).findings
    row = the_row(linear(learnt(200, 150)))
    assert Finding.MOVED_LITTLE not in row.findings
    assert 8 <= row.spikes <= 20


def test_findings() -> None:
    trap = noise(64, 64)
    trap[3, 5] = 40.0
    assert the_row(linear(trap)).traps == 1
    assert Finding.TRAP in the_row(linear(trap)).findings
    collapsed = the_row(linear(noise(256, 8) @ noise(8, 256)))
    assert collapsed.rank_loss == 248
    assert Finding.RANK_COLLAPSE in collapsed.findings
    assert Finding.TOO_SMALL in the_row(linear(noise(20, 20))).findings
    identity = the_row(linear(torch.eye(64)))
    assert Finding.NOT_FITTED in identity.findings
    assert "equal" in identity.finding
    assert np.isnan(identity.alpha)


def test_one_broken_layer_costs_no_other() -> None:
    broken = noise(64, 64)
    broken[0, 0] = float("nan")
    model = nn.Sequential(
        linear(noise(64, 64)), linear(broken), linear(torch.zeros(64, 64)), nn.Linear(64, 64, device="meta")
    )
    good, nan, zero, meta = diagnose(model)
    assert np.isfinite(good.alpha)
    assert "NaN" in nan.finding
    assert np.isnan(nan.alpha)
    assert (nan.N, nan.M) == (64, 64)
    assert "zero" in zero.finding
    assert "meta" in meta.finding


@pytest.mark.parametrize("change", ["transpose", "permute", "scale"])
@pytest.mark.parametrize("shape", [(96, 96), (200, 64)])
def test_invariances(change: str, shape: tuple[int, int]) -> None:
    W = learnt(*shape).double()
    changed = {
        "transpose": lambda: W.T.contiguous(),
        # rows of a rectangle are read in windows: only their order within a window is free
        "permute": lambda: W[:, torch.randperm(shape[1])] if shape[0] > shape[1] else W[torch.randperm(shape[0])],
        "scale": lambda: W * 1e-6,
    }[change]()
    one, other = the_row(linear(W)), the_row(linear(changed))
    for column in ("alpha", "D", "sigma", "stable_rank", "effective_rank", "largest_entry"):
        assert getattr(other, column) == pytest.approx(getattr(one, column), rel=1e-6), column
    for column in ("n_tail", "spikes", "traps", "rank_loss", "findings"):
        assert getattr(other, column) == getattr(one, column), column


def test_alpha_is_flat_over_aspect_ratios() -> None:
    generator = np.random.default_rng(0)
    means, sigmas = {}, {}
    for Q in (1, 4, 16, 64):
        rows = []
        for _ in range(6):
            W = (1 - generator.random((64 * Q, 64))) ** (-1 / 2) * generator.choice([-1, 1], (64 * Q, 64))
            rows.append(the_row(linear(torch.from_numpy(W))))
        means[Q] = np.mean([row.alpha for row in rows])
        sigmas[Q] = np.mean([row.sigma for row in rows])
    for Q in (4, 16, 64):
        assert abs(means[Q] - means[1]) < sigmas[1]


def test_order_of_layers_changes_no_number() -> None:
    first, second = learnt(64, 64, 0), learnt(64, 64, 5)
    one = diagnose(nn.Sequential(linear(first), linear(second)), randomize=True)
    other = diagnose(nn.Sequential(linear(second), linear(first)), randomize=False)
    assert one.rows[0].alpha == other.rows[1].alpha
    assert one.rows[1].spikes == other.rows[0].spikes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    kind=st.sampled_from(["normal", "zero", "one", "huge", "tiny", "nan", "inf", "low rank"]),
    convention=st.sampled_from(["default", "weightwatcher"]),
)
def test_never_an_exception_never_a_sentinel(
    rows: int, columns: int, dtype: torch.dtype, kind: str, convention: str
) -> None:
    W = {
        "normal": lambda: noise(rows, columns),
        "zero": lambda: torch.zeros(rows, columns),
        "one": lambda: torch.ones(rows, columns),
        "huge": lambda: noise(rows, columns) * 1e4,
        "tiny": lambda: noise(rows, columns) * 1e-7,
        "nan": lambda: noise(rows, columns).masked_fill_(noise(rows, columns) > 1, float("nan")),
        "inf": lambda: noise(rows, columns).masked_fill_(noise(rows, columns) > 1, float("inf")),
        "low rank": lambda: noise(rows, 1) @ noise(1, columns),
    }[kind]()
    row = the_row(linear(W.to(dtype)), convention=convention, randomize=True, mp_fit=True, erg=True)
    assert np.isnan(row.alpha) or row.alpha > 1
    assert np.isnan(row.alpha) == (row.fit_status != "success")
    assert row.finding
    assert min(row.n_tail, row.spikes, row.traps, row.rank_loss) >= 0


def test_unknown_convention_is_named() -> None:
    with pytest.raises(ValueError, match="'weightwatcher', but got 'ww'"):
        diagnose(linear(noise(40, 40)), convention="ww")  # type: ignore[arg-type]


def residual_net() -> nn.Module:
    """A small network that has what WeightWatcher's conventions differ on; its numbers stand in REFERENCE."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(300, 100), nn.Linear(100, 100),
        nn.Linear(100, 10),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["default", "all"])
def test_weightwatcher_convention(kind: str) -> None:
    options = {} if kind == "default" else {"randomize": True, "mp_fit": True, "erg": True}
    frame = diagnose(residual_net(), convention="weightwatcher", **options).to_frame()
    reference = json.loads(REFERENCE.read_text())[kind]
    assert len(reference) > 30
    for column, values in reference.items():
        if column == "name":
            continue
        if isinstance(values[0], str | bool):
            assert list(frame[column]) == values, column
        else:
            np.testing.assert_allclose(
                frame[column].to_numpy(float), np.array(values, float), rtol=1e-8, err_msg=column
            )


def test_csv_round_trip() -> None:
    text = diagnose(linear(noise(40, 40))).to_frame().to_csv(index=False)
    (row,) = csv.DictReader(text.splitlines())
    assert float(row["N"]) == 40


def test_equal_entries_are_no_signal() -> None:
    row = the_row(linear(torch.full((48, 48), 0.3)))
    assert (row.spikes, row.traps) == (0, 0)


def test_a_second_look_is_remembered_until_a_weight_changes() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 48))
    first = diagnose(model)
    assert diagnose(model).rows is first.rows
    model[1].weight.data[0, 0] += 1.0  # counted by no version counter
    second = diagnose(model)
    assert second.rows[0] is first.rows[0]
    assert second.rows[1].frobenius_norm != first.rows[1].frobenius_norm
    assert diagnose(model, convention="weightwatcher").rows[0].extra
    assert diagnose(model, randomize=True).rows[0].extra


def test_a_layer_that_is_cut_otherwise_is_measured_anew() -> None:
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.Linear(64, 48))
    before = diagnose(model).rows[0].n_matrices
    model[0].groups = 1  # the same numbers in the same memory
    assert (before, diagnose(model).rows[0].n_matrices) == (18, 9)


def test_threads_change_no_number() -> None:
    model = nn.Sequential(*[nn.Linear(48, 40 + i) for i in range(5)])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = diagnose(copy.deepcopy(model)).to_frame()
        torch.set_num_threads(3)
        other = diagnose(copy.deepcopy(model)).to_frame()
    finally:
        torch.set_num_threads(threads)
    assert one.drop(columns="note").equals(other.drop(columns="note"))


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.5])
def test_sigma_holds_68_percent_of_exact_samples(alpha: float) -> None:
    generator = np.random.default_rng(int(10 * alpha))
    inside, n_draws = 0, 200
    for _ in range(n_draws):
        # a diagonal matrix whose eigenvalues are exact Pareto samples
        values = (1 - generator.random(100)) ** (-1 / (alpha - 1))
        row = the_row(linear(torch.from_numpy(np.diag(np.sqrt(values)))))
        inside += abs(row.alpha - alpha) < row.sigma
    assert 0.58 < inside / n_draws < 0.78


@pytest.mark.parametrize("convention", ["default", "weightwatcher"])
def test_company_changes_nothing(convention: Convention) -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(48, 48) for _ in range(6)] + [nn.Conv2d(8, 16, 3) for _ in range(4)] + [nn.Linear(30, 90)]
    with torch.no_grad():
        layers[1].weight[2, 3] = float("nan")
        layers[2].weight[5, 6] = 5.0
        layers[3].weight.add_(0.4)
        layers[4].weight.zero_()
        layers[8].weight[3] *= 20.0
    rows = diagnose(nn.Sequential(*layers), convention=convention, mp_fit=True, erg=True)
    for layer, row in zip(layers, rows, strict=True):
        [alone] = diagnose(nn.Sequential(layer), convention=convention, mp_fit=True, erg=True)
        assert alone.findings == row.findings
        frames = [Diagnosis((own,), convention).to_frame() for own in (alone, row)]
        numbers = [name for name in frames[0].select_dtypes("number") if name != "layer_id"]
        a, b = (frame[numbers].to_numpy(float) for frame in frames)
        # the null's sums are float32 inside a block, and `excess` is a ratio of them less 1
        excess = numbers.index("excess")
        np.testing.assert_allclose(a[:, excess], b[:, excess], rtol=0, atol=2e-7)
        np.testing.assert_allclose(np.delete(a, excess, 1), np.delete(b, excess, 1), rtol=1e-6, atol=1e-12)


def rounded(W: torch.Tensor, n_bits: int) -> torch.Tensor:
    step = W.abs().amax(dim=1, keepdim=True) / (2 ** (n_bits - 1) - 1)
    return (W / step).round() * step


class TestLevels:
    def test_four_bits_show_in_either_orientation(self) -> None:
        W = rounded(noise(64, 200), 4)
        for own in (W, W.T.contiguous()):
            [row] = diagnose(nn.Sequential(linear(own)))
            assert Finding.QUANTISED in row.findings
            assert 8 <= row.levels <= 16

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_full_and_half_precision_do_not(self, dtype: torch.dtype) -> None:
        model = nn.Sequential(linear(noise(64, 64)), linear(0.02 * noise(600, 900))).to(dtype)
        assert [row.levels for row in diagnose(model)] == [0, 0]

    def test_pruned_and_constant_weights_are_not_rounded(self) -> None:
        W = noise(64, 64)
        W[torch.rand(64, 64, generator=torch.Generator().manual_seed(3)) < 0.8] = 0.0
        assert [row.levels for row in diagnose(nn.Sequential(linear(W), linear(torch.ones(64, 64))))] == [0, 0]


class TestScaleBesideOthers:
    def found(self, *factors: float) -> list[set[Finding]]:
        layers = [linear(factor * noise(64, 64)) for factor in factors]
        return [set(row.findings) for row in diagnose(nn.Sequential(*layers))]

    def test_the_odd_one_is_named(self) -> None:
        for factor, finding in ((6.0, Finding.OVERGROWN), (0.1, Finding.SHRUNK)):
            one, odd, other = self.found(1.0, factor, 0.7)
            assert finding in odd
            assert not {Finding.OVERGROWN, Finding.SHRUNK} & (one | other)

    def test_scale_alone_says_nothing(self) -> None:
        for factors in ((1.0, 2.0, 0.6), (100.0, 100.0, 100.0), (1.0, 9.0)):
            assert not {Finding.OVERGROWN, Finding.SHRUNK} & set.union(*self.found(*factors))
