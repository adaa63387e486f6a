"""Does a small character-level transformer want other learning rates in its attention than in its other layers?"""

from dataclasses import replace

from objectives import characters
from ww_opt import SpectralObjective, SpectralPruner, Study


def kind_of_layer(name: str) -> str:
    """Label layers by what they do, not by where they stand: few dimensions, one question."""
    return name.rsplit(".", 1)[-1]


STUDY = Study(
    name="characters",
    objective=SpectralObjective(
        characters.make_task(),
        replace(characters.SPACE, label=kind_of_layer),
        n_steps=characters.N_STEPS,
        guard="late",
    ),
    n_trials=25,
    pruner=SpectralPruner(),
)
