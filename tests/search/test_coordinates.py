"""What labels of a kind have in common."""

from __future__ import annotations

import pytest

from ww_opt.search.coordinates import agree


@pytest.mark.parametrize(
    ("parameters", "same"),
    [
        ({"lr/a": 0.1, "lr/b": 0.1, "batch": 3}, True),
        ({"lr/a": 0.1, "lr/b": 0.1 * (1 + 1e-12), "dropout/a": 0.5}, True),
        ({"lr/a": 0.1, "lr/b": 0.1, "dropout/a": 0.5, "dropout/b": 0.4}, False),
        ({"lr/all": 0.1}, False),
        ({"x": 1.0, "y": 1.0}, False),
    ],
)
def test_labels_agree_where_a_kind_has_several(parameters: dict[str, float], same: bool) -> None:
    assert agree(parameters) is same
