"""What do AdamW's usual settings leave on the table, on a thousand signals of which none can be spared to validate?"""

from functools import partial

from optuna.distributions import FloatDistribution
from torch.optim import AdamW

from objectives import mnist1d_cnn
from ww_opt import LayerwiseSpace, SpectralObjective, Study

N_STEPS = 400

STUDY = Study(
    name="mnist1d-cnn",
    objective=SpectralObjective(
        mnist1d_cnn.make_task(n_train=1000, optimizer=partial(AdamW, lr=1e-3)),
        LayerwiseSpace(
            lr=FloatDistribution(2e-4, 5e-2, log=True),
            weight_decay=FloatDistribution(1e-4, 1.0, log=True),
            dropout=FloatDistribution(0.0, 0.5),
        ),
        n_steps=N_STEPS,
        guard="late",
    ),
    n_trials=40,
)
