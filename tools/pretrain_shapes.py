"""Make the weights of the small ViT that `adcam demo` fine-tunes.

    python tools/pretrain_shapes.py configs/shapes/pretrain_vit.py --out shapes_vit.safetensors

The network (adcam/models/shapes_vit.py) sees generated pictures and facts about each whole picture,
but never a mask. It learns three tasks at once:

- The *class token* and the average of the *patch tokens* predict which animals are in the picture.
- The class token predicts the hues and patterns of coats. A coat covers the whole animal, so the
  token has to look at bodies and not only at heads.
- The patch tokens restore the picture. Patches of half of the pictures are hidden; the other
  pictures have noise, and a colour offset for each patch. A patch alone cannot know its offset, so
  it has to look at patches of the same surface. (This is masked image modelling as in SimMIM, Xie
  et al., CVPR 2022, arXiv 2111.09886; the offsets are ours.)

The weights of queries and keys keep their random initial values, so that attention stays a
similarity of tokens. If they were trained, or without the third task, the late blocks of such a
small network would soon look everywhere, and diffusion along their attention would leave the object
(docs/results/README.md has the figures).

The run is seeded. The same versions of torch and numpy, on the same kind of processor and with the
same number of threads, give the same weights; another processor gives equally good ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config, DictAction
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import adcam.models.shapes_vit  # noqa: F401  # timm learns its name
from adcam.data._shapes_drawing import NUM_PATTERNS
from adcam.data.shapes import CLASSES, render_coats
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
    vit = timm.create_model("shapes_vit", num_classes=0, global_pool="")
    train(vit, cfg)
    state = {name: value.half().contiguous() for name, value in vit.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out, metadata={"format": "pt", "config": Path(args.config).name})
    num_params = sum(value.numel() for value in state.values())
    print(f"{args.out}: {num_params / 1e6:.2f} M parameters, {args.out.stat().st_size} bytes")


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


def build_optimizer(
    vit: VisionTransformer, heads: list[nn.Parameter], optim: Any
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, and a rate that rises for ``warmup_steps`` and then falls as a half cosine."""
    frozen = [block.attn.qkv.weight for block in vit.blocks]  # in part, so without decay
    decayed = [p for p in vit.parameters() if p.ndim > 1 and not any(p is q for q in frozen)]
    others = [p for p in vit.parameters() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [*decayed, *heads], "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=optim.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / optim.warmup_steps)
            * (0.5 + 0.5 * math.cos(math.pi * step / optim.num_steps))
        ),
    )
    return optimizer, schedule


def train(vit: VisionTransformer, cfg: Config) -> None:
    start = time.perf_counter()
    imgs, facts = draw_pictures(cfg.data)
    print(f"{len(imgs)} pictures drawn in {time.perf_counter() - start:.0f} s", flush=True)
    keep_attention(vit)
    restore = nn.Linear(vit.embed_dim, 3 * PIXELS_TO_RESTORE**2)
    tell = nn.Linear(vit.embed_dim, facts.shape[1])
    locate = nn.Conv2d(vit.embed_dim, len(CLASSES), 3, padding=1)
    hidden_token = nn.Parameter(torch.zeros(vit.embed_dim))
    heads = [hidden_token, *(p for head in (restore, tell, locate) for p in head.parameters())]
    optimizer, schedule = build_optimizer(vit, heads, cfg.optim)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rng = np.random.default_rng(cfg.seed)
    running = np.zeros(4)
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
            patches = tokens[:, vit.num_prefix_tokens :]
            restored = restore(patches).float()
            told = tell(tokens[:, 0]).float()
            maps = locate(patches.mT.unflatten(2, vit.patch_embed.grid_size)).float()
        said = torch.from_numpy(facts[chosen])
        num = len(CLASSES)
        losses = torch.stack(
            [
                F.smooth_l1_loss(restored, coarse_patches(clean, vit), beta=0.5),
                F.binary_cross_entropy_with_logits(told[:, :num], said[:, :num]),
                F.binary_cross_entropy_with_logits(told[:, num:], said[:, num:]),
                F.binary_cross_entropy_with_logits(maps.mean(dim=(2, 3)), said[:, :num]),
            ]
        )
        optimizer.zero_grad()
        (losses @ torch.tensor(cfg.loss_weights)).backward()
        nn.utils.clip_grad_norm_([*vit.parameters(), *heads], 1.0)
        optimizer.step()
        schedule.step()
        running += (losses.detach().numpy() - running) * (0.02 if step else 1.0)
        if (step + 1) % 100 == 0 or step + 1 == cfg.optim.num_steps:
            rate = (step + 1) * cfg.optim.batch_size / (time.perf_counter() - start)
            parts = " ".join(
                f"{name} {value:.3f}"
                for name, value in zip(("restore", "class", "coat", "maps"), running, strict=True)
            )
            print(f"{step + 1}/{cfg.optim.num_steps} {parts} {rate:.0f} img/s", flush=True)
    vit.eval()


def spoil(clean: Tensor, side: int, corrupt: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Offset every patch's colour, add noise, choose patches to hide.

    How much is drawn per picture, from nothing to twice the mean given; a share is left clean.

    Returns:
        The spoiled pictures (B, 3, H, W) and the hidden patches, bool (B, N).
    """
    num, _, height, width = clean.shape
    level = 2 * torch.rand(num, 1, 1, 1) * (torch.rand(num, 1, 1, 1) >= corrupt["clean_share"])
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


def keep_attention(vit: VisionTransformer) -> None:
    """Give query and key weights no gradient; values, which share their tensor, keep theirs."""

    def zero_queries_and_keys(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[: 2 * vit.embed_dim] = 0
        return grad

    for block in vit.blocks:
        block.attn.qkv.weight.register_hook(zero_queries_and_keys)
        block.attn.qkv.bias.register_hook(zero_queries_and_keys)
        block.attn.fused_attn = False  # on the CPU the fused kernel is slow in bfloat16 backward


if __name__ == "__main__":
    main()
