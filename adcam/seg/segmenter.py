"""mmsegmentation's encoder-decoder, with soft targets in training and several views in testing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mmseg.models  # noqa: F401 - registers the networks
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.backbones import ResNet, ResNetV1c
from mmseg.models.decode_heads import ASPPHead, DepthwiseSeparableASPPHead, FCNHead, UPerHead
from mmseg.models.necks import MultiLevelNeck
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError, reading_config
from adcam.options import check_choice
from adcam.seg import deeplab_v2, timm_cnn, timm_vit
from adcam.seg.losses import ConfidenceCrossEntropy

AMP_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_PLAIN_PARTS = (
    *(ResNet, ResNetV1c, timm_cnn.TimmCNN, timm_vit.TimmViT, MultiLevelNeck),
    *(FCNHead, deeplab_v2.DeepLabV2Head, ASPPHead, DepthwiseSeparableASPPHead, UPerHead),
)

_DIVISOR = 16  # of sides, so that patches and strides come out even


@dataclass(frozen=True)
class SegViews:
    """The views of an image that are tested; probabilities of all views are averaged.

    Attributes:
        scales: Factors on the image's size, one view each.
        flip: ``True`` adds the mirrored image at each scale.
        short_side: Pixels of the shorter side at scale 1; ``None`` keeps the image's own size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    short_side: int | None = None

    def sizes(self, ori_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the input heights and widths for an image."""
        base = 1.0 if self.short_side is None else self.short_side / min(ori_hw)
        return [
            (
                max(round(ori_hw[0] * base * scale / _DIVISOR), 1) * _DIVISOR,
                max(round(ori_hw[1] * base * scale / _DIVISOR), 1) * _DIVISOR,
            )
            for scale in self.scales
        ]


@MODELS.register_module()
class Segmenter(EncoderDecoder):
    """``EncoderDecoder`` of mmsegmentation; its checkpoints have the same names.

    Args:
        amp: Precision in training and testing: ``"none"``, ``"bfloat16"`` or ``"float16"``.
        views: The views that are tested.
        **kwargs: Arguments of ``EncoderDecoder``.
    """

    def __init__(self, *, amp: str, views: SegViews, **kwargs: Any) -> None:
        check_choice("amp", amp, AMP_DTYPES)
        super().__init__(**kwargs)
        self._amp_dtype = AMP_DTYPES[amp]
        self._views = views

    def init_weights(self) -> None:
        """Initialise once, though mmengine asks again, and without three log lines a tensor."""
        if self.is_init:
            return
        logging.disable(logging.INFO)
        try:
            super().init_weights()
        finally:
            logging.disable(logging.NOTSET)

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of a batch; weight maps, where there are any, go to the losses that use them."""
        if "weight_map" in data_samples[0]:
            weights = [sample.weight_map.data for sample in data_samples]
            # Crops of small images were padded, with labels that do not count.
            hw = inputs.shape[2:]
            padded = [F.pad(w, (0, hw[1] - w.shape[2], 0, hw[0] - w.shape[1])) for w in weights]
            for module in self.modules():
                if isinstance(module, ConfidenceCrossEntropy):
                    module.weight_map = torch.cat(padded)
        with self._autocast(inputs):
            losses: dict[str, Tensor] = super().loss(inputs, data_samples)
        return losses

    def val_step(self, data: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return predicted and ground-truth indices of a batch of ``img`` and ``target`` lists."""
        return [
            (self.compute_probabilities(img).argmax(axis=0).astype(np.uint8), target)
            for img, target in zip(data["img"], data["target"], strict=True)
        ]

    def compute_probabilities(self, img: np.ndarray) -> np.ndarray:
        """Compute the class probabilities of an image.

        Args:
            img: RGB uint8 (H, W, 3).

        Returns:
            float32 (C, H, W), background first, summing to 1 over the first axis.
        """
        pixels = torch.from_numpy(np.array(img, order="C")).to(self.device)
        return self.compute_on_device([pixels])[0][0].cpu().numpy()

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        device: torch.device = self.data_preprocessor.mean.device
        return device

    @property
    def views(self) -> SegViews:
        """The views that are tested."""
        return self._views

    @property
    def has_fixed_course(self) -> bool:
        """Whether :meth:`run_network` does the same for all images of one size.

        Sliding windows look at values to check that they cover the image. Networks with other parts
        than the configs of adcam may do so too, predict otherwise, or keep something between calls.
        """
        parts = [self.backbone, self.decode_head, *([self.neck] if self.with_neck else [])]
        is_plain = all(type(part) in _PLAIN_PARTS for part in parts)
        return is_plain and self.test_cfg.get("mode", "whole") == "whole"

    @torch.no_grad()
    def compute_on_device(
        self, imgs: Sequence[Tensor], run: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """As :meth:`compute_probabilities`, of images that the network sees at equal sizes.

        Args:
            imgs: RGB uint8 (H, W, 3) each, where the network is, those of one size in a row.
            run: What runs the network in place of :meth:`run_network`, such as graphs of it; only
                for a network of fixed course.

        Returns:
            float32 (images, C, H, W) for each size.
        """
        stacks = [torch.stack([*group]) for _, group in groupby(imgs, lambda img: img.shape)]
        # Contiguous as bytes: convolutions of other layouts round otherwise.
        pixels = [self._normalise(x.permute(0, 3, 1, 2).contiguous().float()) for x in stacks]
        ori_hws = [(x.shape[2], x.shape[3]) for x in pixels]
        totals = [x.new_zeros(()) for x in pixels]
        for hw in self._views.sizes(ori_hws[0]):
            inputs = torch.cat([_resize(x, hw, antialias=True) for x in pixels])
            for mirrored in (False, True) if self._views.flip else (False,):
                logits = self._infer(inputs.flip(3) if mirrored else inputs, run)
                logits = logits.flip(3) if mirrored else logits
                for i, of_size in enumerate(logits.split([len(x) for x in pixels])):
                    totals[i] = totals[i] + _resize(of_size.float(), ori_hws[i]).softmax(dim=1)
        return [total / total.sum(dim=1, keepdim=True) for total in totals]

    def run_network(self, inputs: Tensor) -> Tensor:
        """Compute the logits (images, C, h, w), as coarse as the head makes them.

        Args:
            inputs: Normalised images (images, 3, H, W).
        """
        with self._autocast(inputs):
            logits: Tensor = self.decode_head(self.extract_feat(inputs))
        return logits

    def _infer(self, inputs: Tensor, run: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute the logits (images, C, H, W) at the size of the inputs."""
        hw = (inputs.shape[2], inputs.shape[3])
        meta = {"ori_shape": hw, "img_shape": hw, "pad_shape": hw, "padding_size": [0] * 4}
        metas = [dict(meta) for _ in range(len(inputs))]
        # Before autocast, whose copies of the weights a graph must not take for its own.
        coarse = None if run is None else run(inputs)
        with self._autocast(inputs):
            if coarse is None:
                logits: Tensor = self.inference(inputs, metas)
            else:  # as the head goes on in `predict`; a graph would keep this large result
                logits = self.decode_head.predict_by_feat(coarse, metas)
        return logits

    def _normalise(self, pixels: Tensor) -> Tensor:
        """What ``SegDataPreProcessor`` does, for pixels that are RGB already."""
        preprocessor = self.data_preprocessor
        if not preprocessor._channel_conversion:
            pixels = pixels.flip(1)
        return (pixels - preprocessor.mean) / preprocessor.std

    def _autocast(self, inputs: Tensor) -> AbstractContextManager[Any]:
        if self._amp_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(inputs.device.type, dtype=self._amp_dtype)


def _resize(x: Tensor, hw: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Resize maps (images, C, H, W); logits are not smoothed, as in mmsegmentation."""
    return F.interpolate(x, hw, mode="bilinear", align_corners=False, antialias=antialias)


def build_segmenter(
    model: Mapping[str, Any], *, amp: str, views: SegViews, crop_size: tuple[int, int], sync: bool
) -> Segmenter:
    """Build a network from the ``model`` section of a config.

    Args:
        model: A network as mmsegmentation describes it; its ``type`` must be
            ``EncoderDecoder``. Weights are not loaded.
        amp: Precision in training and testing: ``"none"``, ``"bfloat16"`` or ``"float16"``.
        views: The views that are tested.
        crop_size: Height and width that training batches are padded to.
        sync: ``True`` takes batch statistics over all processes; ``False`` makes SyncBN a BN.

    Raises:
        AdcamError: For another ``type``, or a part that does not exist or take its options.
    """
    settings = ConfigDict(copy.deepcopy(dict(model)))
    if (kind := settings.pop("type", "EncoderDecoder")) != "EncoderDecoder":
        raise AdcamError(f"model.type must be 'EncoderDecoder', got {kind!r}")
    settings.pop("pretrained", None)  # a link that would be downloaded; see `weights`
    settings.data_preprocessor.setdefault("type", "SegDataPreProcessor")
    settings.data_preprocessor.size = tuple(crop_size)
    # A training before this one may have left another scope to look names up in.
    with DefaultScope.overwrite_default_scope("mmseg"), reading_config("model"):
        segmenter = Segmenter(**settings, amp=amp, views=views)
    if sync:
        return segmenter
    single: Segmenter = revert_sync_batchnorm(segmenter)
    return single
