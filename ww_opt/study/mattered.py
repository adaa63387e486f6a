"""What mattered in a study, in a few sentences: only what is beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

from ww_opt.search.importance import Importance, Share
from ww_opt.search.layer_effects import beyond_chance

__all__ = ["about_layers", "mattered"]

_LEAST = 0.05
"""Share that a setting makes with 95% of the belief, to be named."""
_N_SETTINGS = 3
_N_EFFECTS = 2
_PARTS = {
    "shared": "what its labels share",
    "last": "the last label apart from the others",
    "trend": "the trend over its labels",
    "alone": "what each label does by itself",
}
_MORE = {
    "spikes": ("more spikes", "fewer spikes"),
    "alpha": ("a higher alpha", "a lower alpha"),
    "stable_rank": ("a higher stable rank", "a lower stable rank"),
    "spectral_norm": ("a larger spectral norm", "a smaller spectral norm"),
}


def mattered(found: Importance) -> list[str]:
    """Say what mattered, or why that cannot be told."""
    if not found.n_trials:
        return []
    told = [f"What mattered cannot be told: {found.why_not}."] if found.why_not else _about_shares(found)
    return [*told, *_about_gain(found), *about_layers(found)]


def _about_shares(found: Importance) -> list[str]:
    kinds = [own for own in found.kinds if own.low > _LEAST] or list(found.kinds[:1])
    little = [own.kind for own in found.kinds if own not in kinds]
    text = f"By themselves {_listed(kinds)} of what the settings explain"
    text += f"; {_and(little)} little or nothing that can be told" if little else ""
    text += f". Trials that the model was not shown it predicts with R2 {found.r2:.2f}"
    if found.n_left_out:
        text += f" ({found.n_trials} trials; {found.n_left_out} that did not complete or compare are left out)"
    said = [f"{text}."]
    leading = max((own for own in found.parts if own.kind == kinds[0].kind), key=lambda own: own.share, default=None)
    if leading is not None and leading.low > _LEAST and leading.share > 0.5 * kinds[0].share:
        said[0] += f" Most of {leading.kind} is {_PARTS[leading.part]}."
    single = [own for own in found.settings if own.low > _LEAST and own.label][:_N_SETTINGS]
    if single:
        said.append(f"Of single settings {_listed(single)}.")
    return said


def _about_gain(found: Importance) -> list[str]:
    if found.only_shared:
        return ["Only shared settings were tried: what settings per layer would gain is not known."]
    gain = found.gain
    if gain is None:
        return []
    text = f"Settings per layer gained {gain.gained:.2g} +- {gain.sd:.2g} over shared ones"
    if gain.is_told and gain.gained < 0:
        text = f"Settings per layer lost {-gain.gained:.2g} +- {gain.sd:.2g} against shared ones, as the model believes"
    elif not gain.is_told:
        text += ": not more than the model's doubt"
    text += f" (trial {gain.trial} against the best shared point)"
    if not gain.n_shared:
        text += ". No trial shared its settings, so that the latter is a guess of the model: enqueue one that does"
    return [f"{text}."]


def about_layers(found: Importance) -> list[str]:
    """Say what settings did to their own layers; empty where nothing is beyond chance."""
    told = []
    for own in beyond_chance(found.effects)[:_N_EFFECTS]:
        what = _MORE[own.measure][own.correlation < 0]
        told.append(
            f"{own.kind}/{own.label} went with {what} in {own.layer} "
            f"({own.correlation:.2f}, {own.low:.2f} to {own.high:.2f})"
        )
    return [f"What higher settings did to their own layers, by rank correlation: {'; '.join(told)}."] if told else []


def _listed(shares: Sequence[Share]) -> str:
    first, *rest = (
        f"{own.kind}{'/' if own.label else ''}{own.label}|{own.share:.0%} ({own.low:.0%} to {own.high:.0%})".split("|")
        for own in shares
    )
    return _and([f"{first[0]} makes {first[1]}", *(f"{name} {share}" for name, share in rest)])


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
