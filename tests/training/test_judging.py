"""Shapes and values say what labels are; what can be read in two ways is refused; no number is wrong in silence."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from ww_opt.spectral import diagnose, score
from ww_opt.training import judging
from ww_opt.training.judging import Judgement, judge, judge_parts, late_loss
from ww_opt.training.layouts import Layout, layout_of

G = torch.Generator().manual_seed(3)
Z = torch.randn(20, 5, generator=G)
Y = torch.randint(0, 5, (20,), generator=G)
MAPS = torch.randn(3, 5, 6, 7, generator=G)
MASKS = torch.randint(0, 5, (3, 6, 7), generator=G)
PLAIN = 40
"""Where the factor on the logits is 1."""


def loss(own: Judgement) -> float:
    return own.losses[PLAIN]


class TestClasses:
    expected = float(nn.functional.cross_entropy(Z.double(), Y))

    def test_of_an_example_each(self) -> None:
        own = judge(Z, Y)
        assert loss(own) == pytest.approx(self.expected)
        assert own.accuracy == float((Z.argmax(1) == Y).double().mean())
        assert own.n == own.n_examples == 20

    @pytest.mark.parametrize("labels", [Y.float(), Y.view(20, 1), Y.to(torch.int16), Y.double()])
    def test_numbers_of_any_type(self, labels: torch.Tensor) -> None:
        assert judge(Z, labels) == judge(Z, Y)

    def test_torchs_own_layout_and_the_class_axis_last(self) -> None:
        own = judge(MAPS, MASKS)
        assert loss(own) == pytest.approx(float(nn.functional.cross_entropy(MAPS.double(), MASKS)))
        assert own == judge(MAPS.movedim(1, -1), MASKS) == judge(MAPS, MASKS.unsqueeze(1))
        assert (own.n, own.n_examples) == (126, 3)

    def test_an_axis_that_may_be_either_is_asked_for(self) -> None:
        labels = torch.randint(0, 6, (4, 6), generator=G)
        right = nn.functional.one_hot(labels, 6).transpose(1, 2) * 9.0
        with pytest.raises(ValueError, match=r"logits \[4, 6, 6\], labels \[4, 6\].*class_dim=1"):
            judge(right, labels)
        assert judge(right, labels, class_dim=1).accuracy == 1.0
        assert judge(right.transpose(1, 2), labels, class_dim=-1).accuracy == 1.0

    def test_labels_out_of_range_are_told_and_may_be_ignored(self) -> None:
        labels = torch.where(torch.arange(20) < 5, 255, Y)
        with pytest.raises(ValueError, match=r"from 0 to 4.*5 of 20 are 255.*ignore_index"):
            judge(Z, labels)
        assert judge(Z, labels, ignore_index=255) == judge(Z[5:], Y[5:])
        assert judge(Z, labels.where(labels != 255, -100)) == judge(Z[5:], Y[5:])
        with pytest.raises(ValueError, match=r"1 of 20 are -1"):
            judge(Z, torch.cat([Y[:19], torch.tensor([-1])]))
        with pytest.raises(ValueError, match=r"must be whole, but got 0\.5"):
            judge(Z, torch.full((20,), 0.5))
        with pytest.raises(ValueError, match=r"all 20 are -100.*shares"):
            judge(Z, torch.full((20,), -100))


class TestYesAndNo:
    z = torch.randn(20, generator=G)
    y = (torch.rand(20, generator=G) < 0.5).float()

    def test_one_logit_is_the_two_of_half_its_size(self) -> None:
        own = judge(self.z, self.y)
        two = judge(torch.stack([-self.z / 2, self.z / 2], 1), self.y.long())
        assert own.losses == pytest.approx(two.losses)
        assert own.accuracy == two.accuracy
        assert own.constant_loss == pytest.approx(two.constant_loss)

    @pytest.mark.parametrize("shapes", [((20, 1), (20, 1)), ((20, 1), (20,)), ((20,), (20, 1)), ((4, 1, 5), (4, 5))])
    def test_columns(self, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        own = judge(self.z.view(shapes[0]), self.y.view(shapes[1]).bool())
        assert own.losses == pytest.approx(judge(self.z, self.y).losses)

    def test_a_column_of_zeros_is_no_class(self) -> None:
        own = judge(self.z.view(20, 1), torch.zeros(20, dtype=torch.int64))
        assert loss(own) == pytest.approx(float(nn.functional.softplus(self.z.double()).mean()))
        assert own.accuracy == float((self.z <= 0).double().mean())

    def test_several_labels_an_example(self) -> None:
        labels = (torch.rand(20, 5, generator=G) < 0.4).float()
        own = judge(Z, labels)
        expected = nn.functional.binary_cross_entropy_with_logits(Z.double(), labels.double())
        assert loss(own) == pytest.approx(float(expected))
        assert own.accuracy == float(((Z > 0) == (labels > 0.5)).double().mean())
        assert (own.n, own.n_examples) == (100, 20)
        assert own == judge(Z, labels.bool()) == judge(Z, labels.long())

    def test_a_missing_label_is_left_out_alone(self) -> None:
        labels = (torch.rand(20, 5, generator=G) < 0.4).float()
        labels[3, 2] = -1.0
        own = judge(Z, labels, ignore_index=-1)
        assert own.n == 99
        keep = labels != -1
        expected = nn.functional.binary_cross_entropy_with_logits(Z[keep].double(), labels[keep].double())
        assert loss(own) == pytest.approx(float(expected))

    def test_what_is_neither_yes_nor_no(self) -> None:
        with pytest.raises(ValueError, match=r"lie in \[0, 1\], but 20 of 20 are -1.*0 and 1"):
            judge(self.z, torch.full((20,), -1.0))
        with pytest.raises(ValueError, match=r"of 100 are 2, 3, 4"):
            judge(Z, torch.full((20, 5), 2).index_fill(1, torch.tensor([3]), 3).index_fill(1, torch.tensor([4]), 4))

    def test_one_hot_or_several_is_asked_for(self) -> None:
        hot = nn.functional.one_hot(Y, 5).float()
        with pytest.raises(ValueError, match=r"single 1.*argmax.*kind='several'"):
            judge(Z, hot)
        assert loss(judge(Z, hot, kind="several")) != loss(judge(Z, hot, class_dim=-1))
        assert judge(Z, hot, class_dim=-1).losses == pytest.approx(judge(Z, hot.argmax(-1)).losses)


def test_shares_of_classes() -> None:
    shares = torch.softmax(torch.randn(20, 5, generator=G), 1)
    own = judge(Z, shares)
    assert loss(own) == pytest.approx(float(nn.functional.cross_entropy(Z.double(), shares.double())))
    assert own.accuracy == pytest.approx(float(shares.gather(1, Z.argmax(1, keepdim=True)).mean()))
    maps = torch.softmax(torch.randn(3, 5, 6, 7, generator=G), 1)
    assert loss(judge(MAPS, maps)) == pytest.approx(float(nn.functional.cross_entropy(MAPS.double(), maps.double())))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (Z, torch.zeros(19, dtype=torch.int64), r"logits \[20, 5\], labels \[19\]"),
        (MAPS, MASKS[:, :, :5], r"logits \[3, 5, 6, 7\], labels \[3, 6, 5\].*class_dim"),
        (Z, torch.zeros(20, 4), r"logits \[20, 5\], labels \[20, 4\]"),
        (torch.zeros(5, 20), torch.zeros(20, dtype=torch.int64), r"logits \[5, 20\], labels \[20\]"),
        (torch.softmax(Z, 1), Y, "probabilities.*leave the softmax out"),
    ],
)
def test_what_does_not_belong_together(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [(Z.argmax(1), Y, "floating point"), ({"logits": Z}, Y, "is a dict"), (Z, Y.tolist(), r"`labels` is a list")],
)
def test_what_is_no_logits(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        judge(logits, labels)


def test_numbers_that_are_none_are_infinite() -> None:
    for bad in (math.nan, math.inf):
        assert late_loss([judge(torch.full((8, 5), bad), Y[:8])]) == math.inf
    assert math.isnan(judge(torch.full((8, 5), math.nan), Y[:8]).accuracy)
    # a class that is masked is no fault where it is not the label
    masked = Z.index_fill(1, torch.tensor([4]), -math.inf)
    assert math.isfinite(late_loss([judge(masked, Y.clamp(max=3))]))


def test_batches_of_other_lengths_are_judged_alike() -> None:
    layout = layout_of(MAPS, MASKS)
    assert layout == Layout("classes", 1)
    # the second batch alone could be read in two ways: what the first one showed holds
    parts = [(MAPS, MASKS), (MAPS[:2, :, :5, :5], MASKS[:2, :5, :5])]
    own = judge_parts(parts, 4, layout)
    z = torch.cat([part.movedim(1, -1).flatten(0, -2) for part, _ in parts])
    y = torch.cat([labels.flatten() for _, labels in parts])
    assert own == judge(z, y, 4)
    assert own.n_examples == 5
    with pytest.raises(ValueError, match="with class_dim=1"):
        judge_parts([(MAPS.movedim(1, -1), MASKS)], 0, layout)


def test_of_very_many_labels_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_MOST_LOGITS", 2**12)
    labels = torch.randint(0, 2, (6, 40, 40), generator=G)
    logits = torch.stack([labels == 0, labels == 1], 1).float()
    own = judge(logits, labels)
    assert own.accuracy == 1.0
    assert 1500 < own.n <= 2048
    assert own.n_examples == 6


class TestErrors:
    def test_of_the_accuracy_over_draws(self) -> None:
        """Its size is that of the spread over draws of the examples, also where labels come in clusters."""
        generator = torch.Generator().manual_seed(5)
        found, told = [], []
        for _ in range(200):
            share = torch.rand(60, 1, generator=generator)
            hits = torch.rand(60, 8, generator=generator) < share
            own = judge(torch.stack([~hits, hits], -1).float(), torch.ones(60, 8, dtype=torch.int64))
            found.append(own.accuracy)
            told.append(own.accuracy_error)
        spread = float(torch.tensor(found).std())
        assert 0.9 * spread < sum(told) / 200 < 1.25 * spread

    def test_a_constant_has_no_merit_of_having_been_chosen(self) -> None:
        generator = torch.Generator().manual_seed(6)
        own = [judge(torch.zeros(25, 10), torch.randint(0, 10, (25,), generator=generator)) for _ in range(200)]
        assert sum(one.constant_accuracy for one in own) / 200 == pytest.approx(0.1, abs=0.02)
        # without the correction it is 2.07
        assert 2.2 < sum(one.constant_loss for one in own) / 200 < math.log(10)
        skewed = judge(torch.zeros(40, 3), (torch.arange(40) % 10 == 0).long())
        assert skewed.constant_accuracy == 0.9

    def test_older_records_know_none(self) -> None:
        kept = {
            name: value for name, value in asdict(judge(Z, Y)).items() if name in ("step", "n", "accuracy", "losses")
        }
        own = Judgement.from_record(json.loads(json.dumps(kept)))
        assert math.isnan(own.accuracy_error)
        assert own == judge(Z, Y)
        again = Judgement.from_record(json.loads(json.dumps(asdict(judge(Z, Y)))))
        assert asdict(again) == asdict(judge(Z, Y))


def test_a_late_loss_knows_its_unit() -> None:
    own = late_loss([Judgement(3, 10, math.nan, (0.4,))])
    assert (own, own.in_nats) == (0.4, False)
    assert late_loss([judge(Z, Y)]).in_nats
    again = pickle.loads(pickle.dumps(own))
    assert (again, again.in_nats) == (0.4, False)
    rows = diagnose(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    for unit in (1.0, 1000.0):
        late = late_loss([Judgement(3, 10, math.nan, (0.4 * unit,))])
        assert score(rows, train_loss=unit, first_loss=0.8 * unit, late_loss=late) == pytest.approx(math.log(0.5))
    with pytest.raises(ValueError, match="first_loss"):
        score(rows, train_loss=1.0, late_loss=own)
