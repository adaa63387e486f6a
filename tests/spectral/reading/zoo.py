"""Small networks with the names and layouts of timm, torchvision, transformers, peft and diffusers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.spectral.reading.weight_rows import Conv1D, Lora

D, WIDE, VOCABULARY, CLASSES = 48, 96, 80, 40

ZOO: dict[str, Callable[[], nn.Module]] = {}


def animal(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    ZOO[build.__name__] = build
    return build


def tree(**parts: nn.Module | nn.Parameter | Tensor) -> nn.Module:
    """A module with these children, parameters and buffers; ``__`` in a name stands for a dot."""
    root = nn.Module()
    for name, part in parts.items():
        *path, leaf = name.split("__")
        owner = root
        for step in path:
            if step not in owner._modules:
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        if isinstance(part, nn.Parameter):
            owner.register_parameter(leaf, part)
        elif isinstance(part, Tensor):
            owner.register_buffer(leaf, part)
        else:
            owner.add_module(leaf, part)
    return root


def several(build: Callable[[], nn.Module], n: int = 2) -> nn.ModuleList:
    return nn.ModuleList(build() for _ in range(n))


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(*shape))


def line(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


def vit_block() -> nn.Module:
    return tree(
        norm1=nn.LayerNorm(D), attn__qkv=nn.Linear(D, 3 * D), attn__proj=nn.Linear(D, D), norm2=nn.LayerNorm(D),
        mlp__fc1=nn.Linear(D, WIDE), mlp__fc2=nn.Linear(WIDE, D), ls1__gamma=nn.Parameter(torch.ones(D)),
    )  # fmt: skip


@animal
def vit() -> nn.Module:
    return tree(
        cls_token=table(1, 1, D), pos_embed=table(1, 50, D), reg_token=table(1, 40, D),
        patch_embed__proj=nn.Conv2d(3, D, 4, 4), blocks=several(vit_block), norm=nn.LayerNorm(D),
        head=nn.Linear(D, CLASSES),
    )  # fmt: skip


@animal
def distilled_vit() -> nn.Module:
    model = vit()
    model.dist_token, model.head_dist = table(1, 1, D), nn.Linear(D, CLASSES)
    return model


@animal
def swin() -> nn.Module:
    """Tables of relative positions, masks of windows, a layer that merges patches."""
    block = lambda: tree(  # noqa: E731
        attn__relative_position_bias_table=table(225, 32), attn__relative_position_index=torch.ones(64, 64),
        attn_mask=torch.randn(4, 64, 64).sign() * 100, attn__qkv=nn.Linear(D, 3 * D), attn__proj=nn.Linear(D, D),
    )  # fmt: skip
    return tree(
        patch_embed__proj=nn.Conv2d(3, D, 4, 4), layers__0__blocks=several(block),
        layers__1__downsample__reduction=line(4 * D, D), layers__1__blocks=several(block),
        head__fc=nn.Linear(D, CLASSES),
    )  # fmt: skip


@animal
def convnet() -> nn.Module:
    """Batch norms, depthwise layers of three sizes, squeeze and excitation, and timm's `conv_head`, which is hidden."""
    block = lambda: tree(  # noqa: E731
        conv_pw=nn.Conv2d(D, WIDE, 1, bias=False), bn1=nn.BatchNorm2d(WIDE),
        conv_dw=nn.Conv2d(WIDE, WIDE, 7, groups=WIDE, bias=False), se__conv_reduce=nn.Conv2d(WIDE, 8, 1),
        se__conv_expand=nn.Conv2d(8, WIDE, 1), conv_pwl=nn.Conv2d(WIDE, D, 1, bias=False),
    )  # fmt: skip
    return tree(
        conv_stem=nn.Conv2d(3, D, 3, bias=False), bn1=nn.BatchNorm2d(D), blocks=several(block),
        conv_head=nn.Conv2d(D, WIDE, 1), classifier=nn.Linear(WIDE, CLASSES),
    )  # fmt: skip


@animal
def resnet() -> nn.Module:
    block = lambda: tree(conv1=nn.Conv2d(D, D, 3, bias=False), bn1=nn.BatchNorm2d(D))  # noqa: E731
    return tree(
        conv1=nn.Conv2d(3, D, 7), layer1=several(block), layer2=several(block), fc=nn.Linear(D, CLASSES)
    )  # fmt: skip


@animal
def vgg() -> nn.Module:
    return tree(
        features=nn.Sequential(nn.Conv2d(3, D, 3), nn.ReLU(), nn.Conv2d(D, D, 3)),
        classifier=nn.Sequential(
            nn.Linear(D * 4, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 40)
        ),
    )


@animal
def unet() -> nn.Module:
    double = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3))  # noqa: E731
    return tree(
        inc__double_conv=double(3, D), down1__double_conv=double(D, WIDE), up1__up=nn.ConvTranspose2d(WIDE, D, 2, 2),
        up1__conv__double_conv=double(WIDE, D), outc__conv=nn.Conv2d(D, CLASSES, 1),
    )  # fmt: skip


def bert_layer() -> nn.Module:
    return tree(
        attention__self__query=nn.Linear(D, D), attention__self__key=nn.Linear(D, D),
        attention__self__value=nn.Linear(D, D), attention__output__dense=nn.Linear(D, D),
        attention__output__LayerNorm=nn.LayerNorm(D), intermediate__dense=nn.Linear(D, WIDE),
        output__dense=nn.Linear(WIDE, D),
    )  # fmt: skip


def bert_body(n_layers: int) -> nn.Module:
    return tree(
        embeddings__word_embeddings=nn.Embedding(VOCABULARY, D), embeddings__position_embeddings=nn.Embedding(64, D),
        embeddings__token_type_embeddings=nn.Embedding(2, D), embeddings__LayerNorm=nn.LayerNorm(D),
        encoder__layer=several(bert_layer, n_layers), pooler__dense=nn.Linear(D, D),
    )  # fmt: skip


@animal
def bert() -> nn.Module:
    return tree(bert=bert_body(2), classifier=nn.Linear(D, CLASSES))


@animal
def bert_of_one_layer() -> nn.Module:
    return tree(bert=bert_body(1), classifier__dense=nn.Linear(D, D), classifier__out_proj=nn.Linear(D, CLASSES))


@animal
def masked_bert() -> nn.Module:
    model = tree(
        bert=bert_body(2), cls__predictions__bias=nn.Parameter(torch.zeros(VOCABULARY)),
        cls__predictions__transform__dense=nn.Linear(D, D), cls__predictions__decoder=nn.Linear(D, VOCABULARY),
    )  # fmt: skip
    model.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    return model


def gpt2(is_tied: bool, names: tuple[str, str] = ("transformer", "lm_head")) -> nn.Module:
    layer = lambda: tree(  # noqa: E731
        ln_1=nn.LayerNorm(D), attn__bias=torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64),
        attn__c_attn=Conv1D(3 * D, D), attn__c_proj=Conv1D(D, D),
        mlp__c_fc=Conv1D(4 * D, D), mlp__c_proj=Conv1D(D, 4 * D),
    )  # fmt: skip
    body = tree(wte=nn.Embedding(VOCABULARY, D), wpe=nn.Embedding(64, D), h=several(layer), ln_f=nn.LayerNorm(D))
    body.register_buffer("pe", torch.sin(torch.arange(64)[:, None] / 10 ** (torch.arange(D) / 8)))
    head = line(D, VOCABULARY)
    if is_tied:
        head.weight = body.wte.weight  # type: ignore[union-attr,assignment]
    return tree(**{names[0]: body, names[1]: head})


@animal
def tied_gpt() -> nn.Module:
    return gpt2(True)


@animal
def tied_gpt_whose_head_sorts_first() -> nn.Module:
    return gpt2(True, ("zoo", "a_head"))


@animal
def untied_gpt() -> nn.Module:
    return gpt2(False)


def llama(is_tied: bool) -> nn.Module:
    layer = lambda: tree(  # noqa: E731
        self_attn__q_proj=line(D, D), self_attn__k_proj=line(D, 32), self_attn__v_proj=line(D, 32),
        self_attn__o_proj=line(D, D), mlp__gate_proj=line(D, WIDE), mlp__up_proj=line(D, WIDE),
        mlp__down_proj=line(WIDE, D), self_attn__rotary_emb__inv_freq=torch.ones(8),
    )  # fmt: skip
    model = tree(
        model__embed_tokens=nn.Embedding(VOCABULARY, D), model__layers=several(layer, 11), lm_head=line(D, VOCABULARY)
    )
    if is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight  # type: ignore[union-attr,assignment]
    return model


@animal
def untied_llama() -> nn.Module:
    return llama(False)


@animal
def tied_llama() -> nn.Module:
    return llama(True)


class Experts(nn.Module):
    """As GraniteMoe's: a module of its own whose weight has three dimensions."""

    def __init__(self, n: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = table(n, n_out, n_in)


@animal
def mixture_of_modules() -> nn.Module:
    layer = lambda: tree(  # noqa: E731
        self_attn__q_proj=line(D, D), block_sparse_moe__input_linear=Experts(6, D, 2 * D),
        block_sparse_moe__output_linear=Experts(6, D, D), block_sparse_moe__router__layer=line(D, 6),
    )  # fmt: skip
    return tree(
        model__embed_tokens=nn.Embedding(VOCABULARY, D), model__layers=several(layer), lm_head=line(D, VOCABULARY)
    )


@animal
def mixture_of_parameters() -> nn.Module:
    layer = lambda: tree(  # noqa: E731
        self_attn__q_proj=line(D, D), mlp__experts__gate_up_proj=table(6, D, 2 * WIDE),
        mlp__experts__gate_up_proj_bias=table(6, 2 * WIDE), mlp__experts__down_proj=table(6, WIDE, D),
        mlp__router__weight=table(40, D), mlp__e_score_correction_bias=torch.randn(40),
    )  # fmt: skip
    return tree(
        model__embed_tokens=nn.Embedding(VOCABULARY, D), model__layers=several(layer), lm_head=line(D, VOCABULARY)
    )


@animal
def lstm() -> nn.Module:
    return tree(
        encoder=nn.Embedding(VOCABULARY, D),
        rnn=nn.LSTM(D, D, 2, bidirectional=True),
        decoder=nn.Linear(2 * D, VOCABULARY),
    )


@animal
def gru_with_weight_norm() -> nn.Module:
    return tree(
        body=nn.GRU(D, D), conv=nn.utils.parametrizations.weight_norm(nn.Conv1d(D, D, 5)), out=nn.Linear(D, CLASSES)
    )


@animal
def mamba() -> nn.Module:
    layer = lambda: tree(  # noqa: E731
        mixer__A_log=nn.Parameter(torch.log(torch.arange(1, 41.0)).repeat(WIDE, 1)),
        mixer__D=nn.Parameter(torch.ones(WIDE)),
        mixer__in_proj=line(D, 2 * WIDE), mixer__conv1d=nn.Conv1d(WIDE, WIDE, 4, groups=WIDE),
        mixer__x_proj=line(WIDE, 83), mixer__dt_proj=nn.Linear(3, WIDE), mixer__out_proj=line(WIDE, D),
    )  # fmt: skip
    model = tree(
        backbone__embeddings=nn.Embedding(VOCABULARY, D), backbone__layers=several(layer), lm_head=line(D, VOCABULARY)
    )
    model.lm_head.weight = model.backbone.embeddings.weight  # type: ignore[union-attr,assignment]
    return model


@animal
def torch_transformer() -> nn.Module:
    return tree(
        src_tok=nn.Embedding(VOCABULARY, D),
        body=nn.Transformer(D, 2, 2, 1, WIDE, batch_first=True),
        generator=nn.Linear(D, VOCABULARY),
    )


@animal
def diffusion_unet() -> nn.Module:
    """Names as in diffusers: two linear layers called embedding, attention with `to_out.0`."""
    block = lambda: tree(  # noqa: E731
        norm1=nn.GroupNorm(4, D), attn1__to_q=line(D, D), attn1__to_k=line(32, D), attn1__to_v=line(32, D),
        attn1__to_out=nn.ModuleList([nn.Linear(D, D)]), ff__net__0__proj=nn.Linear(D, 8 * D),
    )  # fmt: skip
    return tree(
        conv_in=nn.Conv2d(4, D, 3), time_embedding__linear_1=nn.Linear(D, WIDE),
        time_embedding__linear_2=nn.Linear(WIDE, WIDE),
        down_blocks__0__attentions__0__transformer_blocks=several(block),
        down_blocks__0__resnets__0__time_emb_proj=nn.Linear(WIDE, D), conv_out=nn.Conv2d(D, 4, 3),
    )  # fmt: skip


@animal
def plain_sequence() -> nn.Module:
    """Ten before two in the order of letters; the output layer is square, so numbers alone tell."""
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(D, D), nn.ReLU())), nn.Linear(D, D))


@animal
def one_output() -> nn.Module:
    return tree(net=nn.Sequential(nn.Linear(1, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1)))


@animal
def autoencoder() -> nn.Module:
    return tree(
        encoder=nn.Sequential(nn.Linear(WIDE, D), nn.ReLU(), nn.Linear(D, 32)),
        decoder=nn.Sequential(nn.Linear(32, D), nn.ReLU(), nn.Linear(D, WIDE)),
    )


@animal
def frozen_base() -> nn.Module:
    """A trained body that is loaded to be used: nothing of it, and a narrow new head, changes by training."""
    model = vit().requires_grad_(False)
    model.head = nn.Linear(D, 10)
    return model


def with_adapters(is_merged: bool) -> nn.Module:
    names = ("q", "k", "fc1", "fc2")
    layers = OrderedDict((name, nn.Linear(D, D)) for name in names)
    adapters = {name: Lora(layer, (D, D)) for name, layer in layers.items()}
    for layer in layers.values():
        layer.requires_grad_(False)
    if not is_merged:
        return tree(base_model__model=nn.ModuleDict({**adapters, "head": nn.Linear(D, CLASSES)}))
    with torch.no_grad():
        for name, layer in layers.items():
            own = adapters[name]
            layer.weight += own.scaling["default"] * own.lora_B["default"].weight @ own.lora_A["default"].weight
    return nn.ModuleDict({**layers, "head": nn.Linear(D, CLASSES)})


@animal
def merged_adapters() -> nn.Module:
    return with_adapters(True)
