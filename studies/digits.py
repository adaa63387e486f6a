"""Which learning rate, weight decay and dropout does each layer of a digits MLP want, with 20 % of its labels wrong?"""

from optuna.pruners import MedianPruner

from objectives import digits
from ww_opt import SpectralObjective, SpectralPruner, Study

STUDY = Study(
    name="digits",
    objective=SpectralObjective(
        digits.make_task(label_noise=0.2),
        digits.SPACE,
        n_steps=digits.N_STEPS,
        guard="late",
    ),
    n_trials=40,
    # the spectra decide first; then the worse half at the same step, once half of the run is over
    pruner=SpectralPruner(MedianPruner(n_startup_trials=5, n_warmup_steps=digits.N_STEPS // 2)),
)
