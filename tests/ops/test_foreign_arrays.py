"""Arrays of another kind than an operation takes: refused with what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.ops.common_neighbor import common_neighbor, neighbor_similarity
from adcam.ops.dense_crf import dense_crf
from adcam.ops.diffusion import diffuse, transition
from adcam.ops.level_boxes import level_boxes
from adcam.ops.token_attention import accumulate_token_attention, token_attention

ARRAY = np.full((1, 4, 4), 0.25, dtype=np.float32)
TENSOR = torch.from_numpy(ARRAY)
HEADS = np.ones((1, 2, 5, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("attn", lambda: common_neighbor(ARRAY)),  # type: ignore[arg-type]
        ("attn", lambda: neighbor_similarity(ARRAY)),  # type: ignore[arg-type]
        ("attn", lambda: common_neighbor(ARRAY.tolist())),
        ("maps", lambda: diffuse(ARRAY, TENSOR)),  # type: ignore[arg-type]
        ("affinity", lambda: diffuse(TENSOR, ARRAY)),  # type: ignore[arg-type]
        ("affinity", lambda: transition(ARRAY)),  # type: ignore[arg-type]
        (
            "q",
            lambda: token_attention(HEADS, HEADS, scale=1.0, num_prefix_tokens=1),  # type: ignore[arg-type]
        ),
        (
            "k",
            lambda: accumulate_token_attention(
                None,
                torch.from_numpy(HEADS),
                HEADS,
                scale=1.0,
                num_prefix_tokens=1,  # type: ignore[arg-type]
            ),
        ),
    ],
)
def test_arrays_in_place_of_tensors(name: str, call: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a torch\.Tensor, got (ndarray|list); "):
        call()


def test_images_and_lists_in_place_of_arrays() -> None:
    img = np.zeros((4, 5, 3), dtype=np.uint8)
    prob = np.full((2, 4, 5), 0.5, dtype=np.float32)
    with pytest.raises(ValueError, match=r"img must be a NumPy array .*got Image; numpy.asarray"):
        dense_crf(prob, Image.fromarray(img))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prob must be a NumPy array .*got list"):
        dense_crf(prob.tolist(), img)


def test_a_tensor_of_levels_gives_the_boxes_of_its_array() -> None:
    levels = np.zeros((4, 5), dtype=np.uint8)
    levels[1:3, 1:4] = 7
    found = level_boxes(torch.from_numpy(levels))  # type: ignore[arg-type]
    assert np.array_equal(found.boxes, level_boxes(levels).boxes)
