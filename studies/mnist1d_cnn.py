"""How far can a 1-d convolutional net go on MNIST-1D when no example can be spared for validation?"""

from optuna.pruners import MedianPruner

from objectives import mnist1d_cnn
from ww_opt import SpectralObjective, SpectralPruner, Study

STUDY = Study(
    name="mnist1d-cnn",
    objective=SpectralObjective(
        mnist1d_cnn.make_task(n_train=2000),
        mnist1d_cnn.SPACE,
        n_steps=mnist1d_cnn.N_STEPS,
        interval_steps=mnist1d_cnn.INTERVAL_STEPS,
        guard="late",
    ),
    n_trials=40,
    pruner=SpectralPruner(MedianPruner(n_startup_trials=5, n_warmup_steps=mnist1d_cnn.N_STEPS // 2)),
)
