"""Compute what training a segmentation config costs from its operations; nothing is run.

    python tools/segmentation_cost.py configs/seg/voc12/*.py

Networks are built on PyTorch's meta device, which computes shapes but no numbers. The operations
are those of convolutions and matrix products, two for each multiply-add, and a step counts as three
forward passes. The memory is that of the parameters, their gradients and the optimizer's state in
float32, and of what autograd keeps for the backward pass, with activations in bfloat16 and losses
in float32. Workspaces and fragmentation add to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from adcam.seg.segmenter import SegViews, build_segmenter
from adcam.training.segmenter import load_segmentation_settings

PEAK = 312e12
"""Dense bfloat16 operations a second of an A100 (NVIDIA A100 data sheet)."""
SHARE = 0.25
"""Share of the peak that is assumed to be reached."""
BUS = 20e9
"""Bytes a second between GPUs that is assumed, about PCIe 4.0 ×16; NVLink is faster."""
STATES = {"SGD": 1, "AdamW": 2}
"""Tensors of the parameters' size that the optimizer keeps."""


def main() -> None:
    """Print one row of a Markdown table for each config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    print(
        "| config | parameters, M | GFLOP a crop, forward | steps × batch | "
        "GPU memory, GB: 1 GPU / 8 GPUs | hours: 1 GPU / 8 GPUs |\n|---|---|---|---|---|---|"
    )
    for path in parser.parse_args().configs:
        print(row(path))


def row(path: Path) -> str:
    """The row of one config."""
    config = load_segmentation_settings(path)
    train = config.train
    height, width = train.crop_size
    network = build_segmenter(
        config.model, amp="none", views=SegViews(), crop_size=(height, width), sync=False
    )
    network = network.to("meta").bfloat16().train()
    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        kept.append(tensor)  # a freed storage's number could come again
        return tensor

    kept: list[torch.Tensor] = []
    batch = 2
    inputs = torch.zeros(batch, 3, height, width, dtype=torch.bfloat16, device="meta")
    label = torch.zeros(batch, height, width, dtype=torch.int64, device="meta")
    heads = [network.decode_head]
    if network.with_auxiliary_head:
        heads.append(network.auxiliary_head)
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network.extract_feat(inputs)
        for head in heads:
            logits = F.interpolate(head(features), (height, width), mode="bilinear")
            F.cross_entropy(logits.float(), label)
    forward = counter.get_total_flops() / batch
    # bfloat16 copies of the parameters are kept once a step, whatever the batch.
    kept_bytes = (sum(sizes.values()) - 2 * parameters) / batch
    optimizer = config.optim_wrapper["optimizer"]["type"]
    states = 4 * (parameters + trained * (1 + STATES[optimizer]))
    memory = [
        (states + 2 * parameters + kept_bytes * -(-train.batch_size // gpus)) / 1e9
        for gpus in (1, 8)
    ]
    total = 3 * forward * train.batch_size * train.max_iters / (PEAK * SHARE)
    exchanged = train.max_iters * 2 * 7 / 8 * 4 * trained / BUS
    return (
        f"| `{path.parent.name}/{path.stem}` | {parameters / 1e6:.0f} | {forward / 1e9:.0f} | "
        f"{train.max_iters:,} × {train.batch_size} | {memory[0]:.0f} / {memory[1]:.0f} | "
        f"{total / 3600:.1f} / {(total / 8 + exchanged) / 3600:.1f} |"
    )


if __name__ == "__main__":
    main()
