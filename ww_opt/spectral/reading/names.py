"""What names tell about a weight: output layers, embeddings, tables, expert stacks, the inside of blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "could_be_embedding",
    "is_adapter_part",
    "is_embedding",
    "is_inner",
    "is_norm",
    "is_stack",
    "is_table",
    "is_weight_like",
    "named_output",
    "plain_parts",
]

# parts that wrappers put into a path: they say nothing about what a layer does
_WRAPPED = ("base_model", "merged", "original_module", "base_layer", "_orig_mod", "_fsdp_wrapped_module")
# an output layer, wherever outside the blocks: head_dist, lm_head, classifier_2, cls.seq_relationship ...
_STRONG = re.compile(
    r"(?P<many>(\w+_)?(heads|classifiers|outputs_list))|(\w+_)?head(_?\d+|_\w+)?|(\w+_)?classif(y|ier|ication)\w*|cls"
    r"|(\w+_)?logits?|qa_outputs|scores?|embed_out|proj_out|seq_relationship|unembed\w*|output_projection|aux_?\d*"
    r"|aux_?logits|(\w+_)?predictions?|readout|regress\w*"
)
_DECODER = re.compile(r"decoder")  # of masked-language models: a layer of its own; else a whole half of a network
_NOT_STRONG = re.compile(
    r"conv_head|pre_?(logits|classifier|head)\w*|\w*(multi|talking)_?heads?\w*|head_?(norm|dim)\w*"
)
# an output layer, if nothing says so more clearly
_WEAK = re.compile(
    r"fc|(\w+_)?out(put)?s?_?\d*|out(put)?_?\w+|outc|(final|last)\w*|\w+_(final|last)|(\w+_)?pred(ict(or|ed)?)?_?\d*"
    r"|generator|to_(rgb|out|pixels?|vocab)|vocab_(proj\w*|linear|head)"
)
_NOT_WEAK = re.compile(r"out_proj|to_out|output_proj")
# never an output layer, whatever its shape: what a block is made of
_INNER = re.compile(
    r"(c_|to_|w_?|in_)?(q|k|v|qkv|kv|qk|query|key|value|keys|values|attn)(_proj|_lin|_layer|_a_proj\w*|_b_proj)?|wq|wk|wv|wo"
    r"|(in|x|dt|o|up|down|gate|gate_up|bcdt)_proj|in_proj\w*|out_proj|c_fc|c_proj|router|gate|wg|gating|transform|pooler"
    r"|adaln\w*|modulation|film\w*|(\w+_)?downsample|reduction|shortcut"
)
_ATTENTION = re.compile(r"(self_|cross_|multi_?head_?)?(attn|attention|sa|mha)\d*(_layer)?")
_EMBEDDING = re.compile(r"\w*emb\w*")
_TOKENS = re.compile(
    r"wte|wpe|tok(en)?s?|word(s|_vectors)?|vocab(ulary)?|pos(ition(al)?)?s?(_(enc|emb|table|id)\w*)?|lookup|shared|codebook|relative_\w+|(\w+_)?table"
)
_LINEAR = re.compile(r"\w*(proj|linear|fc|mlp|dense|map|conv|net)\w*|[a-z]*_?(in|out|up|down)")
_NORM = re.compile(r"(\w+_)?(\w*norm|ln|bn|gn)(_\w+|\d*)?")
_NO_LAYER = re.compile(
    r"pos|position|positions|positional|tok|token|tokens|table|bias|biases|mask|masks|rel|relative|query"
    r"|queries|prompt|prompts|prefix|latent|latents|memory|codebook|anchor|anchors|cache|state|states"
    r"|buffer|proto|prototypes|centroids|bank|freq|freqs|rope|sin|cos|grid|mean|means|var|std|running|pe"
    r"|scale|scales|gamma|beta|confusion|confmat|cls|cov|gram|norm|emb|embed|embedding|embeddings|coords"
    r"|index"
)
_A_LAYER = re.compile(
    r"experts?|moe|proj|projection|kernels?|\w*weights?|linear|dense|ffn?|fc\d*|mlp|gate|up|down|w\d*|w[a-z]|win|wout"
)
_ADAPTER = re.compile(r"lora|loha|lokr|hada|oft|boft|ia3|vera|fourierft|vblora|prompt_embeddings")


def plain_parts(path: str) -> list[str]:
    """The parts of a path, without those of wrappers; of PEFT's saved modules without the adapter's name."""
    parts = path.split(".")
    if "modules_to_save" in parts:
        place = parts.index("modules_to_save")
        parts = parts[:place] + parts[place + 2 :]
    return [part for part in parts if part not in _WRAPPED] or parts[-1:]


def named_output(parts: Sequence[str]) -> tuple[int, bool] | None:
    """How many parts name the output layer or what holds it, and whether the name is beyond doubt.

    A list of output layers (``heads.0``, ``heads.age``) has one more: each of them is one.
    """
    return _named_output(tuple(parts))


@lru_cache(maxsize=4096)  # the same names come at every look
def _named_output(parts: tuple[str, ...]) -> tuple[int, bool] | None:
    lower = [part.lower() for part in parts]
    if any(_NOT_STRONG.fullmatch(part) for part in lower):
        return None
    for place, part in enumerate(lower):
        found = _STRONG.fullmatch(part)
        if found:
            return min(place + 1 + bool(found["many"]), len(parts)), True
    named = [place for place, part in enumerate(lower) if not part.isdigit()]
    if not named or any(_ATTENTION.fullmatch(part) for part in lower):
        return None
    last = named[-1]
    if _DECODER.fullmatch(lower[last]) and last == len(lower) - 1:
        return last + 1, True
    for place in named:
        if _WEAK.fullmatch(lower[place]) and not _NOT_WEAK.fullmatch(lower[place]):
            return place + 1, False
    return None


def is_inner(parts: Sequence[str]) -> bool:
    """Whether it is part of an attention, a router or the like, so that its output goes on inside the network."""
    return any(_INNER.fullmatch(part.lower()) or _ATTENTION.fullmatch(part.lower()) for part in parts)


def is_embedding(owner: str) -> bool:
    """Whether a matrix without a bias is an embedding by its name."""
    parts = [part.lower() for part in plain_parts(owner) if not part.isdigit()]
    if not parts:
        return False
    if _STRONG.fullmatch(parts[-1]) or re.search("proj|linear|mlp|dense", parts[-1]):  # `embed_out`
        return False
    if _TOKENS.fullmatch(parts[-1]) or _EMBEDDING.fullmatch(parts[-1]):
        return True
    return any(_EMBEDDING.fullmatch(part) for part in parts) and not _LINEAR.fullmatch(parts[-1])


def could_be_embedding(owner: str) -> bool:
    """Whether nothing in its name says that a matrix without a bias is a linear layer."""
    parts = plain_parts(owner)
    named = [part.lower() for part in parts if not part.isdigit()][-1:]
    return named_output(parts) is None and not is_inner(parts) and not any(map(_LINEAR.fullmatch, named))


def is_norm(owner: str) -> bool:
    """Whether it is a layer norm or the like, whose weight may have two dimensions."""
    return bool(_NORM.fullmatch(owner.rpartition(".")[2].lower()))


def is_table(leaf: str) -> bool:
    """Whether a parameter or buffer is named as a table, a mask, a token or a state."""
    return any(_NO_LAYER.fullmatch(word) for word in re.findall(r"[a-z]+", leaf.lower()))


def is_weight_like(leaf: str) -> bool:
    """Whether a bare parameter is named as a weight: ``w1``, ``up_proj``, ``kernel``."""
    return any(_A_LAYER.fullmatch(word) for word in re.findall(r"[a-z]+\d*", leaf.lower()))


def is_stack(owner: str, leaf: str) -> bool:
    """Whether a bare parameter of three dimensions is named as a stack of weight matrices, such as an expert's."""
    return not is_table(leaf) and is_weight_like(
        f"{owner.replace('.', '_')}_{leaf}" if "expert" in owner.lower() else leaf
    )


def is_adapter_part(name: str) -> bool:
    """Whether it belongs to an adapter, by the names of peft, diffusers and kohya's scripts."""
    words = re.findall(r"[a-z]+\d?", name.lower())
    return any(_ADAPTER.fullmatch(word) for word in words)
