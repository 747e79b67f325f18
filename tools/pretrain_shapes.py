"""Make the weights of the small ViT that `adcam demo` fine-tunes.

    python tools/pretrain_shapes.py configs/shapes/pretrain_vit.py --out shapes_vit.safetensors

The network sees generated pictures and what could be said of a whole picture, never a mask.
Three things are asked of it at once:

- *Patch tokens* restore the picture: patches are hidden, and the others spoiled by a colour offset
  of their own and by noise. A patch alone cannot know its offset, so the network must look at
  patches of the same surface. (Masked image modelling as SimMIM, Xie et al., CVPR 2022, arXiv
  2111.09886; the offsets are ours.)
- The *class token* tells which animals are there, and
- which hues and patterns of coats are there. Coats cover the whole animal, so the class token has
  to look at bodies and not at heads alone.

Attention starts as similarity: query and key weights are equal and near orthogonal, so a token
first attends to those like it (mimetic initialisation: Trockman and Kolter, ICML 2023, arXiv
2305.09828, who set their product near the identity), and patch embedding and position embedding
start as cosine bases. A network as small as this one does not find that state by itself in the
time given. ``init.structured=False`` starts from timm's own initialisation.

The run is seeded. The same versions of torch and numpy on the same kind of processor with the same
number of threads give the same weights; another processor gives equally good ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, DictAction
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.data.shapes import CLASSES, NUM_PATTERNS, render_coats
from adcam.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

NUM_HUES = 8
PIXELS_TO_RESTORE = 4  # each patch is restored at 4×4 pixels: its colours, not its grain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    torch.set_num_threads(args.threads)
    torch.manual_seed(cfg.seed)
    vit = build_vit(cfg.model, cfg.init)
    train(vit, cfg)
    state = {name: value.half().contiguous() for name, value in vit.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out, metadata={"format": "pt", "config": Path(args.config).name})
    num_params = sum(value.numel() for value in state.values())
    print(f"{args.out}: {num_params / 1e6:.2f} M parameters, {args.out.stat().st_size} bytes")


def build_vit(model: dict[str, Any], init: dict[str, Any]) -> VisionTransformer:
    vit = VisionTransformer(num_classes=0, global_pool="", **model)
    for block in vit.blocks:
        block.attn.fused_attn = False  # on the CPU the fused kernel is slow in bfloat16 backward
    if init["structured"]:
        init_structured(vit, **{k: v for k, v in init.items() if k != "structured"})
    return vit


@torch.no_grad()
def init_structured(
    vit: VisionTransformer,
    *,
    colour_gain: float,
    position_gain: float,
    similarity_gain: float,
    mixing_gain: float,
) -> None:
    """Set embeddings to cosine bases and attention to similarity.

    Args:
        vit: The network, changed in place.
        colour_gain: Weight of a patch's mean colour against its finer structure.
        position_gain: Weight of position; larger makes attention more local.
        similarity_gain: Scale of query-key products; larger makes attention more selective.
        mixing_gain: Share of the attended tokens in what a block adds.
    """
    dim, (grid_h, grid_w) = vit.embed_dim, vit.patch_embed.grid_size
    side = vit.patch_embed.patch_size[0]
    rotation = _random_orthogonal(dim)

    steps = torch.arange(side)
    cosines = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / side) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    orders = sorted(
        ((u, v) for u in range(side) for v in range(side)), key=lambda uv: (sum(uv), uv)
    )
    waves = (0.25, 0.45, 0.8, 1.4)
    num_position = 4 * len(waves)
    embed = torch.zeros(dim, 3, side, side)
    for row in range(dim - 2 * num_position):
        u, v = orders[row // 3]
        gain = colour_gain if u == v == 0 else 1.0
        embed[row, row % 3] = torch.outer(cosines[u], cosines[v]) * gain / side
    vit.patch_embed.proj.weight.copy_((rotation @ embed.flatten(1)).view_as(embed))
    vit.patch_embed.proj.bias.zero_()

    ys, xs = torch.meshgrid(torch.arange(grid_h), torch.arange(grid_w), indexing="ij")
    position = torch.zeros(grid_h * grid_w, dim)
    position[:, -num_position:] = torch.stack(
        [
            torch.sin(wave * axis.flatten() + phase)
            for wave in waves
            for axis in (ys, xs)
            for phase in (0.0, math.pi / 2)
        ],
        dim=1,
    )
    vit.pos_embed.zero_()
    vit.pos_embed[0, vit.num_prefix_tokens :] = position_gain * position @ rotation.T

    for block in vit.blocks:
        same = _random_orthogonal(dim) * math.sqrt(similarity_gain)
        mix = _random_orthogonal(dim) * math.sqrt(mixing_gain)
        value = mix + 0.02 * torch.randn(dim, dim)
        block.attn.qkv.weight.copy_(torch.cat([same, same, value]))
        block.attn.proj.weight.copy_(mix.T + 0.02 * torch.randn(dim, dim))
        block.mlp.fc2.weight.mul_(0.5)


def _random_orthogonal(dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim))[0]


def draw_pictures(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, H, W, 3) and facts (n, F) of 0 and 1: classes, hues, patterns."""
    size_hw = tuple(data["size_hw"])
    imgs = np.empty((data["num_images"], *size_hw, 3), np.uint8)
    facts = np.zeros((len(imgs), len(CLASSES) + NUM_HUES + NUM_PATTERNS), np.float32)
    for i in range(len(imgs)):
        # Three numbers, the second of which is no split: never a picture of a generated set.
        rng = np.random.default_rng((data["seed"], 2, i))
        imgs[i], class_ids, coats = render_coats(rng, size_hw=size_hw)
        facts[i, list(class_ids)] = 1
        for hue, pattern in coats:
            facts[i, len(CLASSES) + int(hue * NUM_HUES) % NUM_HUES] = 1
            facts[i, len(CLASSES) + NUM_HUES + pattern] = 1
    return imgs, facts


def train(vit: VisionTransformer, cfg: Config) -> None:
    start = time.perf_counter()
    imgs, facts = draw_pictures(cfg.data)
    print(f"{len(imgs)} pictures drawn in {time.perf_counter() - start:.0f} s", flush=True)
    restore = nn.Linear(vit.embed_dim, 3 * PIXELS_TO_RESTORE**2)
    tell = nn.Linear(vit.embed_dim, facts.shape[1])
    hidden_token = nn.Parameter(torch.zeros(vit.embed_dim))
    params = [*vit.parameters(), *restore.parameters(), *tell.parameters(), hidden_token]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": cfg.optim.weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=cfg.optim.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / cfg.optim.warmup_steps)
            * (0.5 + 0.5 * math.cos(math.pi * step / cfg.optim.num_steps))
        ),
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rng = np.random.default_rng(cfg.seed)
    running = np.zeros(3)
    vit.train()
    for step in range(cfg.optim.num_steps):
        chosen = np.sort(rng.integers(len(imgs), size=cfg.optim.batch_size))
        clean = torch.from_numpy(imgs[chosen]).permute(0, 3, 1, 2).float() / 255
        clean = (clean - mean) / std
        if rng.random() < 0.5:
            clean = clean.flip(3)
        spoiled, hidden = spoil(clean, vit.patch_embed.patch_size[0], cfg.corrupt)
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.optim.bfloat16):
            tokens = encode(vit, spoiled, hidden, hidden_token)
            restored = restore(tokens[:, vit.num_prefix_tokens :])
            told = tell(tokens[:, 0])
        said = torch.from_numpy(facts[chosen])
        num = len(CLASSES)
        losses = torch.stack(
            [
                F.smooth_l1_loss(restored.float(), coarse_patches(clean, vit), beta=0.5),
                F.binary_cross_entropy_with_logits(told[:, :num].float(), said[:, :num]),
                F.binary_cross_entropy_with_logits(told[:, num:].float(), said[:, num:]),
            ]
        )
        optimizer.zero_grad()
        (losses @ torch.tensor(cfg.loss_weights)).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        running += (losses.detach().numpy() - running) * (0.02 if step else 1.0)
        if (step + 1) % 100 == 0 or step + 1 == cfg.optim.num_steps:
            rate = (step + 1) * cfg.optim.batch_size / (time.perf_counter() - start)
            parts = " ".join(
                f"{name} {value:.3f}"
                for name, value in zip(("restore", "class", "coat"), running, strict=True)
            )
            print(f"{step + 1}/{cfg.optim.num_steps} {parts} {rate:.0f} img/s", flush=True)
    vit.eval()


def spoil(clean: Tensor, side: int, corrupt: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Offset every patch's colour, add noise, choose patches to hide.

    How much is drawn per picture, from nothing (one in four) to twice the mean given.

    Returns:
        The spoiled pictures (B, 3, H, W) and the hidden patches, bool (B, N).
    """
    num, _, height, width = clean.shape
    level = 2 * torch.rand(num, 1, 1, 1) * (torch.rand(num, 1, 1, 1) < 0.75)
    offsets = torch.randn(num, 3, height // side, width // side)
    spoiled = clean + level * (
        corrupt["offset"] * F.interpolate(offsets, scale_factor=side)
        + corrupt["noise"] * torch.randn_like(clean)
    )
    num_patches = offsets.shape[2] * offsets.shape[3]
    return spoiled, torch.rand(num, num_patches) < level.view(num, 1) * corrupt["hidden"]


def encode(vit: VisionTransformer, imgs: Tensor, hidden: Tensor, hidden_token: Tensor) -> Tensor:
    """``vit.forward_features`` with hidden patches replaced: (B, P + N, D)."""
    tokens = vit.patch_embed(imgs)
    tokens = torch.where(hidden[..., None], hidden_token.to(tokens.dtype), tokens)
    return vit.norm(vit.blocks(vit._pos_embed(tokens)))


def coarse_patches(imgs: Tensor, vit: VisionTransformer) -> Tensor:
    """Every patch at 4×4 pixels: (B, 3, H, W) -> (B, N, 48)."""
    shrink = vit.patch_embed.patch_size[0] // PIXELS_TO_RESTORE
    return F.pixel_unshuffle(F.avg_pool2d(imgs, shrink), PIXELS_TO_RESTORE).flatten(2).mT


if __name__ == "__main__":
    main()
