"""CLIP as a classifier of any classes that text can name, with the start of CLIP-ES.

CLIP-ES: Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023, arXiv 2212.09506. The outputs
are the similarities of an image to a text for each class and for each of a list of backgrounds; a
class map is the Grad-CAM of its share of the softmax over all of them, in the last block. The text
and the backgrounds are those of ``clip_text.py``, the layer is that of ``generate_cams_voc12.py``
in linyq2117/CLIP-ES. CLIP-ES lets the classes of one image compete with the backgrounds; here all
classes do, of which those that an image does not show have a share near zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.any_vit import AnyViT, ViTInterface, import_from_extra
from adcam.models.attention_recorder import AttentionRecorder
from adcam.models.checkpoints import load_state_dict
from adcam.models.known_names import check_clip_name
from adcam.models.weights import fit_weights
from adcam.structures import check_class_order

PROMPT = "a clean origami {}."
"""The text of a class in CLIP-ES."""

BACKGROUNDS = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river"),
    *("sea", "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean"),
    *("road", "rock", "street", "valley", "bridge", "sign"),
)
"""What CLIP-ES lets compete with the classes of VOC; a class of the same name is left out."""


@dataclass(frozen=True)
class TextImageModel:
    """How a CLIP of some library is run.

    Attributes:
        model: The network.
        encode_image: From normalised images (B, 3, H, W), of any size, to features (B, D).
        encode_text: From n texts to features (n, D).
        norm: The first norm of the last block, whose output (B, T, width) Grad-CAM reads.
        logit_scale: The factor on similarities before softmax.
        name: What errors call it.
        patch_size: Height and width of a patch in pixels.
        input_hw: Height and width of the images that it was trained on.
        pixel_stats: Channel mean and standard deviation of RGB in [0, 1] that it expects.
    """

    model: nn.Module
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[list[str]], Tensor]
    norm: nn.Module
    logit_scale: float
    name: str
    patch_size: tuple[int, int]
    input_hw: tuple[int, int]
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]]


class CLIPText(AnyViT):
    """CLIP with a text for each class, class maps by Grad-CAM.

    Args:
        clip: The network and how it is run.
        classes: The names of the C classes; several texts of one class are separated by ``|``
            behind an equals sign, ``"person=person|people|human"``, and count together.
        backgrounds: Texts that compete with the classes. More, and closer ones, keep maps off what
            often stands beside an object.
        prompt: The sentence around each text, with ``{}`` in its place.

    Raises:
        AdcamError: A name or text is empty or given twice, or the prompt has no place for a text.
    """

    def __init__(
        self,
        clip: TextImageModel,
        classes: Sequence[str],
        *,
        backgrounds: Sequence[str] = BACKGROUNDS,
        prompt: str = PROMPT,
    ) -> None:
        texts_of = read_texts(classes)
        texts = [text for group in texts_of.values() for text in group]
        used = {text.casefold() for text in texts}
        rivals = [text for text in backgrounds if text.casefold() not in used]
        if "{}" not in prompt:
            raise AdcamError(f"the prompt must hold {{}} where the text goes, got {prompt!r}")
        clip.model.float().eval()
        with torch.no_grad():
            features = clip.encode_text([prompt.format(text) for text in (*texts, *rivals)])
        similarity = _Similarity(clip, features)
        interface = ViTInterface(
            model=similarity,
            run=similarity,
            name=clip.name,
            patch_size=clip.patch_size,
            input_hw=clip.input_hw,
            pixel_stats=clip.pixel_stats,
            takes_any_size=True,
        )
        numbers = iter(range(len(texts)))
        outputs = {name: [next(numbers) for _ in group] for name, group in texts_of.items()}
        super().__init__(interface, classes=outputs)
        self._norm = clip.norm

    def _explain(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs, class maps (B, N) by Grad-CAM, and the attention of each block."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output.requires_grad_())
            return output

        handle = self._norm.register_forward_hook(keep)
        try:
            with AttentionRecorder() as recorder:
                outputs = self._interface.run(inputs).float()
        finally:
            handle.remove()
        shares = outputs.softmax(dim=1)
        cams = [self._grad_cam(shares, kept[0], indices) for indices in self.class_groups]
        return outputs.detach(), cams, recorder.blocks

    def _grad_cam(self, shares: Tensor, tokens: Tensor, indices: tuple[int, ...]) -> Tensor:
        """One class' map (B, N) from its share and the tokens (B, T, width) behind the norm."""
        score = shares[:, list(indices)].sum()
        (gradient,) = torch.autograd.grad(score, tokens, retain_graph=True)
        first = self.num_prefix_tokens
        weights = gradient[:, first:].float().mean(dim=1, keepdim=True)  # (B, 1, width)
        return (weights * tokens[:, first:].detach().float()).sum(dim=2).relu()


class _Similarity(nn.Module):
    """Images (B, 3, H, W) to their scaled similarities to fixed texts (B, texts)."""

    def __init__(self, clip: TextImageModel, text_features: Tensor) -> None:
        super().__init__()
        self.clip = clip.model
        self.register_buffer("text_features", F.normalize(text_features.float(), dim=-1))
        self._encode = clip.encode_image
        self._scale = clip.logit_scale

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.normalize(self._encode(inputs).float(), dim=-1)
        return self._scale * features @ self.get_buffer("text_features").T


def read_texts(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the texts of each class.

    Args:
        classes: The names of the classes, each with its texts behind an equals sign if they differ
            from the name.

    Raises:
        AdcamError: A name or text is empty or given twice.

    Example:
        >>> read_texts(["red fox", "person=person|people"])
        {'red fox': ('red fox',), 'person': ('person', 'people')}
    """
    check_class_order(classes)
    if not classes:
        raise AdcamError("no classes given; name at least one, e.g. 'red fox'")
    found: dict[str, tuple[str, ...]] = {}
    for given in classes:
        name, equals, rest = (part.strip() for part in str(given).partition("="))
        texts = tuple(text.strip() for text in (rest if equals else name).split("|"))
        if not name or not all(texts):
            raise AdcamError(f"a class needs a name and texts, got {given!r}")
        if name in found:
            raise AdcamError(f"a class name is given twice: {name!r}")
        found[name] = texts
    each = [text.casefold() for texts in found.values() for text in texts]
    if twice := [text for i, text in enumerate(each) if text in each[:i]]:
        raise AdcamError(f"two classes have the text {twice[0]!r}; a pixel belongs to one class")
    return found


def read_open_clip(
    model: nn.Module | str, weights: str | Path | None = None, tokenizer: Any = None
) -> TextImageModel:
    """Say how a CLIP of open_clip is run.

    Args:
        model: A name of ``open_clip.list_models()`` (OpenAI's weights need one with
            ``-quickgelu``), or a model of open_clip with a ViT.
        weights: For a name: the file of its weights, or ``None`` for random.
        tokenizer: For a model: its tokenizer, as ``open_clip.get_tokenizer`` returns it.

    Raises:
        AdcamError: open_clip is not installed, the name or file is unknown, or the image tower is
            no ViT of open_clip's own.
    """
    if isinstance(model, str):
        open_clip = import_from_extra("open_clip")
        check_clip_name(model)
        tokenizer = open_clip.get_tokenizer(model)
        model = _load_open_clip(open_clip, model, weights)
    network: Any = model
    visual: Any = getattr(network, "visual", None)
    position = getattr(visual, "positional_embedding", None)
    if position is None or not hasattr(visual, "transformer") or tokenizer is None:
        raise AdcamError(
            f"{type(model).__name__} is no model of open_clip with a ViT of its own, or its "
            "tokenizer is missing: give tokenizer=open_clip.get_tokenizer(NAME)"
        )
    if not getattr(visual.transformer, "batch_first", False):
        raise AdcamError("the image tower must take its batch first, as open_clip 2.25 and later")

    return TextImageModel(
        model=network,
        encode_image=partial(_encode_image, visual),
        encode_text=partial(_encode_text, network, tokenizer),
        norm=visual.transformer.resblocks[-1].ln_1,
        logit_scale=float(network.logit_scale.detach().exp()),
        name=type(network).__name__,
        patch_size=tuple(visual.patch_size),
        input_hw=tuple(visual.image_size),
        pixel_stats=(
            tuple(getattr(visual, "image_mean", None) or _MEAN),
            tuple(getattr(visual, "image_std", None) or _STD),
        ),
    )


_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of OpenAI's CLIP (open_clip/constants.py)."""


def _encode_image(visual: Any, inputs: Tensor) -> Tensor:
    size = visual.patch_size
    grid_hw = (inputs.shape[-2] // size[0], inputs.shape[-1] // size[1])
    resized = resize_position(visual.positional_embedding, visual.grid_size, grid_hw)
    found = torch.func.functional_call(visual, {"positional_embedding": resized}, (inputs,))
    return found[0] if isinstance(found, tuple) else found


def _encode_text(network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    device = network.visual.positional_embedding.device
    return network.encode_text(tokenizer(texts).to(device))


def resize_position(position: Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int]) -> Tensor:
    """Resample a position embedding to another grid of patches (bicubic, antialiased).

    Args:
        position: (P + N, width), the prefix tokens first.
        old_hw: Its grid, of N patches.
        new_hw: The grid wanted.

    Returns:
        (P + N', width).
    """
    if tuple(old_hw) == tuple(new_hw):
        return position
    first = len(position) - old_hw[0] * old_hw[1]
    grid = position[first:].T.unflatten(1, tuple(old_hw))[None].float()
    resized = F.interpolate(grid, size=new_hw, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([position[:first], resized[0].flatten(1).T.to(position.dtype)])


def _load_open_clip(open_clip: ModuleType, name: str, weights: str | Path | None) -> nn.Module:
    """Build a model with random weights or those of a file, of which no code runs."""
    model: nn.Module = open_clip.create_model(name, pretrained=None, load_weights=False)
    if weights is None:
        return model
    path = Path(weights).expanduser()
    try:
        fit_weights(model, load_state_dict(path), path)
    except AdcamError as error:
        raise AdcamError(
            f"{error}. Files of open_clip are read (.safetensors, .pt, .bin), OpenAI's weights "
            "among them; OpenAI's own .pt files are programs, and are not run"
        ) from error
    return model
