"""One weight -> its matrices: convolutions, dense, attention and recurrent layers, bare parameters; versions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.spectral.reading.weight_rows import Conv1D, Tokens, by_name, matrices
from ww_opt.spectral.diagnostics import diagnose
from ww_opt.spectral.findings import Status
from ww_opt.spectral.reading.weights import named_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("layer", "kind", "shape"),
    [
        (nn.Conv1d(4, 6, 3), "conv1d", (3, 6, 4)),
        (nn.Conv2d(4, 6, (3, 2)), "conv2d", (6, 6, 4)),
        (nn.Conv3d(4, 6, 2), "conv3d", (8, 6, 4)),
        (nn.Conv2d(4, 6, 1), "conv2d", (1, 6, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), "grouped_conv2d", (18, 3, 2)),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise_conv2d", (1, 8, 9)),
        (nn.Conv1d(4, 4, 5, groups=4), "depthwise_conv1d", (1, 4, 5)),
        (nn.Conv2d(1, 6, 3), "conv2d", (1, 6, 9)),
        (nn.Conv2d(6, 1, 3), "conv2d", (1, 6, 9)),
        (nn.Conv2d(6, 2, 3, groups=2), "grouped_conv2d", (2, 3, 9)),
        (nn.ConvTranspose1d(4, 6, 3), "conv_transpose1d", (3, 4, 6)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "grouped_conv_transpose2d", (18, 2, 3)),
        (nn.ConvTranspose3d(4, 4, 2, groups=4), "depthwise_conv_transpose3d", (1, 4, 8)),
    ],
)
def test_convolution_becomes_slices(layer: nn.Module, kind: str, shape: tuple[int, ...]) -> None:
    (row,) = named_weights(nn.Sequential(layer))
    assert (row.name, row.kind, row.parameter, row.index) == ("0", kind, "0.weight", 1)
    assert matrices(row).shape == shape
    assert matrices(row).square().sum() == pytest.approx(layer.weight.square().sum().item())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_slices_are_kernel_positions_in_order_and_views(memory_format: torch.memory_format) -> None:
    layer = nn.Conv2d(4, 6, (3, 2)).to(memory_format=memory_format)
    (row,) = named_weights(layer)
    positions = [(i, j) for i in range(3) for j in range(2)]
    for found, (i, j) in zip(matrices(row), positions, strict=True):
        assert torch.equal(found, layer.weight[:, :, i, j])
    assert shares_memory(matrices(row), layer.weight)


def test_grouped_convolution_slices_are_the_groups_own() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    (row,) = named_weights(layer)
    assert torch.equal(matrices(row)[0], layer.weight[:3, :, 0, 0])
    assert torch.equal(matrices(row)[9 + 5], layer.weight[3:, :, 1, 2])


@pytest.mark.parametrize(
    "layer", [nn.Linear(1, 5), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Embedding(9, 1)]
)
def test_vectors_are_named_with_the_reason(layer: nn.Module) -> None:
    (row,) = named_weights(layer)
    assert row.status is Status.VECTOR
    assert row.matrices is None


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 6), "linear"),
        (nn.Embedding(6, 4), "embedding"),
        (nn.EmbeddingBag(6, 4), "embedding"),
        (Conv1D(4, 6), "conv1d_hf"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dense_layers_keep_their_dtype_and_memory(layer: nn.Module, kind: str, dtype: torch.dtype) -> None:
    layer = copy.deepcopy(layer).to(dtype)
    (row,) = named_weights(nn.ModuleDict({"fc": layer}))
    assert (row.name, row.kind, row.parameter) == ("fc", kind, "fc.weight")
    assert matrices(row).dtype == dtype
    assert matrices(row).shape == (1, 6, 4)
    assert shares_memory(matrices(row), layer.weight)
    assert not matrices(row).requires_grad


def test_attention_gives_q_k_and_v_apart() -> None:
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    found = by_name(nn.ModuleDict({"attn": attention}))
    assert list(found) == ["attn.q", "attn.k", "attn.v", "attn.bias_k", "attn.bias_v", "attn.out_proj"]
    for name, part in zip("qkv", attention.in_proj_weight.chunk(3), strict=True):
        row = found[f"attn.{name}"]
        assert (row.kind, row.parameter) == ("attention", "attn.in_proj_weight")
        assert torch.equal(matrices(row)[0], part)
    assert found["attn.bias_k"].status is Status.VECTOR
    assert found["attn.out_proj"].kind == "linear"


def test_attention_with_other_widths_for_keys_and_values() -> None:
    found = by_name(nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, kdim=4, vdim=6)}))
    assert [matrices(found[f"attn.{part}"]).shape[2] for part in "qkv"] == [8, 4, 6]
    assert found["attn.v"].parameter == "attn.v_proj_weight"


@pytest.mark.parametrize(
    ("layer", "kind", "gates"),
    [
        (nn.LSTM(3, 5, num_layers=2, bidirectional=True), "lstm", "ifgo"),
        (nn.GRU(3, 5), "gru", "rzn"),
        (nn.RNN(3, 5), "rnn", ""),
        (nn.LSTMCell(3, 5), "lstm", "ifgo"),
        (nn.GRUCell(3, 5), "gru", "rzn"),
        (nn.RNNCell(3, 5), "rnn", ""),
    ],
)
def test_recurrent_layers_give_their_gates_apart(layer: nn.Module, kind: str, gates: str) -> None:
    rows = list(named_weights(nn.ModuleDict({"net": layer})))
    expected = [
        (f"net.{key}.{gate}" if gate else f"net.{key}", f"net.{key}", part)
        for key, value in layer.named_parameters()
        if value.ndim == 2
        for gate, part in zip(gates or [""], value.chunk(len(gates) or 1), strict=True)
    ]
    assert [(row.name, row.parameter) for row in rows] == [entry[:2] for entry in expected]
    assert all(torch.equal(matrices(row)[0], part) for row, (_, _, part) in zip(rows, expected, strict=True))
    assert {row.kind for row in rows} == {kind}


def test_lstm_projection_is_one_matrix() -> None:
    found = by_name(nn.ModuleDict({"net": nn.LSTM(3, 6, proj_size=4)}))
    assert matrices(found["net.weight_hr_l0"]).shape == (1, 4, 6)
    assert matrices(found["net.weight_hh_l0.o"]).shape == (1, 6, 4)


def test_bare_parameters() -> None:
    found = by_name(Tokens())
    assert {row.kind for row in found.values()} == {"parameter"}
    assert matrices(found["positions"]).shape == (1, 7, 8)
    assert matrices(found["experts"]).shape == (3, 8, 4)
    assert {name: found[name].status for name in ("cls_token", "mask", "flags", "phases")} == {
        "cls_token": Status.VECTOR,
        "mask": Status.NOT_NUMERIC,
        "flags": Status.NOT_NUMERIC,
        "phases": Status.NOT_NUMERIC,
    }
    assert "table" not in found


@pytest.mark.parametrize("fused", [False, True])
def test_version_changes_with_every_optimizer_step(fused: bool) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    before = next(named_weights(model)).version
    assert before is not None
    assert hash(before) == hash(next(named_weights(model)).version)
    assert next(named_weights(model)).version == before
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert next(named_weights(model)).version != before


def test_version_sees_writes_through_data() -> None:
    model = nn.Linear(4, 4)
    before = next(named_weights(model)).version
    model.weight.data.mul_(2)
    assert next(named_weights(model)).version != before


def test_version_of_a_dead_parameter_matches_no_other() -> None:
    values, versions, reused = torch.randn(4, 4), {}, 0
    for _ in range(100):  # the next parameter is often given the place, and so the id, of the last one
        model = nn.ParameterList([values.clone()])
        (row,) = named_weights(model)
        reused += id(model[0]) in versions
        assert row.version not in versions.values()
        versions[id(model[0])] = row.version
        del model
    assert reused > 0


def test_inference_tensors_have_no_version() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    (row,) = named_weights(model)
    assert row.version is None
    assert row.status is Status.SUCCESS


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_read_with_a_note(dtype: torch.dtype) -> None:
    layer = nn.Linear(48, 64).to(dtype)
    [row] = diagnose(layer)
    assert row.is_analysed
    assert row.note == f"read as float32 from {str(dtype).removeprefix('torch.')}"
