"""Which learning rate, weight decay and dropout does each layer of a digits MLP want, with 20 % of its labels wrong?"""

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
    # of trials that others are ahead of a third goes on, at a fifth and at half of the run
    pruner=SpectralPruner(),
)
