"""The loss that the head of a refined classifier learns by."""

from __future__ import annotations

import pytest
import torch

from adcam.errors import AdcamError
from adcam.models.refined_cam import PixelHead
from adcam.training.refiner_model import FINE, Refiner


def test_the_loss_is_the_cross_entropy_of_known_pixels() -> None:
    """Images of two sizes; with one value a patch, upsampling changes nothing."""
    torch.manual_seed(0)
    head = PixelHead(5, 4).eval()
    features = [torch.randn(5, 1, 1).half(), torch.randn(5, 1, 1).half()]
    labels = [torch.tensor([[0, 255], [3, 255]], dtype=torch.uint8)] * 2
    labels[1] = torch.full((FINE, FINE), 2, dtype=torch.uint8)
    log_probs = [head(x[None].float()).log_softmax(dim=1).flatten() for x in features]
    expected = -(log_probs[0][0] + log_probs[0][3] + FINE**2 * log_probs[1][2]) / (2 + FINE**2)
    got = Refiner(head)(features, labels)["loss"]
    torch.testing.assert_close(got, expected)


def test_nothing_known_is_no_loss_and_other_modes_are_refused() -> None:
    model = Refiner(PixelHead(5, 4))
    features, unknown = [torch.randn(5, 2, 3)], [torch.full((4, 6), 255, dtype=torch.uint8)]
    loss = model(features, unknown)["loss"]
    loss.backward()
    assert loss.item() == 0
    with pytest.raises(AdcamError, match="mode must be 'loss', got 'predict'"):
        model(features, unknown, mode="predict")
