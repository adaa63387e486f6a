"""Draws the README's figures from a run of the demo.

ww-opt run studies/mnist1d_cnn.py --directory RUNS
python -m docs.figures RUNS
"""

import sys
from pathlib import Path

import optuna

from ww_opt.reporting.plots import layers_figure, spectrum_figure, study_figure
from ww_opt.search.ranking import best
from ww_opt.spectral import diagnose
from ww_opt.study.weights_folder import weights_file

STUDY, LAYER = "mnist1d-cnn", "conv2"


def main(runs: Path) -> None:
    """Draw the study, the layers of its pick and the spectrum of one of them."""
    host = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{runs}/studies.db")
    pick = best(host)
    assert pick is not None
    weights = weights_file(runs / STUDY, pick.number)
    figures = {
        "demo": study_figure(host),
        "layers": layers_figure(diagnose(weights)),
        "spectrum": spectrum_figure(weights, LAYER),
    }
    for name, figure in figures.items():
        figure.savefig(Path(__file__).with_name(f"{name}.png"), dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
