"""Images through network and method: joins models and cams; touches no file."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from timm.layers import Mlp
from torch import Tensor

from adcam.cams import Method
from adcam.cams.activation import check_class_ids
from adcam.cams.fuse import fuse_batch
from adcam.errors import AdcamError, one_line
from adcam.labeling.executor import one_thread
from adcam.labeling.inputs import Resizer
from adcam.labeling.mask_maker import DeviceMaps
from adcam.labeling.transfer import to_host
from adcam.models.preprocess import channel_stats, normalize_pixels, to_inputs
from adcam.settings import TestViews
from adcam.structures import ClassMaps, TokenMaps


class Network(Protocol):
    """What the pipeline needs of a classifier."""

    name: str
    """What errors call it."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of RGB in [0, 1]."""

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        """Logits, class maps and attention of (B, 3, H, W) normalised images."""


@dataclass(frozen=True, eq=False)
class Passes:
    """What a network says about a batch of images of equal input sizes.

    Attributes:
        token_maps: One :class:`adcam.structures.TokenMaps` per scale. Its batch holds every image,
            each followed by its mirrored version if the views are mirrored.
        num_images: Number of images in the batch.
    """

    token_maps: tuple[TokenMaps, ...]
    num_images: int

    def compute_scores(self) -> np.ndarray:
        """Compute the class probabilities of every image, (images, C) float32.

        They are the sigmoid of the logits averaged over scales and views.
        """
        return self.compute_probabilities().cpu().numpy()

    def compute_probabilities(self) -> Tensor:
        """As :meth:`compute_scores`, on the device of the network, which is not waited for."""
        logits = [maps.logits.unflatten(0, (self.num_images, -1)) for maps in self.token_maps]
        return torch.cat(logits, dim=1).float().mean(dim=1).sigmoid()

    def copy(self) -> Passes:
        """Return the same in memory of its own, which no pass that follows can overwrite."""
        with torch.inference_mode():
            return replace(self, token_maps=tuple(map(_copy_tensors, self.token_maps)))


Forward: TypeAlias = Callable[..., tuple[TokenMaps, ...]]
"""From the images at each scale to what the network says about them."""


class MapMaker:
    """Turns images into class maps: a network, test-time views and any number of methods.

    The network sees each image once, whatever the number of methods: ``run`` returns what they all
    read, ``compute_maps`` computes the maps of one of them. Methods that read different blocks may
    differ in the last bits from what each gives alone, because attention is then added up in
    another order. On the CPU torch computes with one
    thread, because the last bits of a sum depend on the number of threads: the same image gives
    the same maps in this process, in a worker process and on a machine with more processors.

    Example:
        maker = MapMaker(network, [cam, ad_cam], views=TestViews((448,), flip=True))
        passes = maker.run([img])
        scores = passes.compute_scores()[0]
        for method in maker.methods:
            (maps,) = maker.compute_maps(passes, [class_ids], [img], method=method)

    Attributes:
        network: The classifier, on ``device`` and in eval mode.
        methods: The methods whose maps can be computed.
        views: Scales and mirroring.
        device: The device that the network runs on.
        dtype: The type that the network computes in.
        layer_sets: The sets of blocks whose attention the methods read.
    """

    def __init__(
        self,
        network: Network,
        methods: Iterable[Method],
        *,
        views: TestViews | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        """Prepare a network for a set of methods.

        Args:
            network: The classifier; it is moved to ``device`` and put into eval mode.
            methods: Methods of :mod:`adcam.cams`. The attention that they read is captured in
                every pass, so name only those whose maps you need.
            views: Scales and mirroring; by default one scale of 448 pixels.
            device: For example ``"cpu"`` or ``"cuda:1"``; by default a GPU if there is one.
            dtype: ``float32``, or ``bfloat16``/``float16`` for autocast.
            compile: Whether to compile the network's MLPs with ``torch.compile``.

        Raises:
            AdcamError: The device is not there, or the network lacks blocks that a method reads.
        """
        self.network = network
        self.methods = tuple(methods)
        self.views = views or TestViews()
        self.device = resolve_device(device)
        self.dtype = dtype
        self.layer_sets = tuple(
            sorted({layers for m in self.methods for layers in find_layer_sets(m, network)})
        )
        self._compile = compile
        self._stats: tuple[Tensor, Tensor] | None = None
        if isinstance(network, torch.nn.Module):
            network.to(self.device).eval()
        self._running: tuple[torch.device, Network] | None = None
        self._lock = _find_lock(network)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was made for a device: who loads a pickle may have another, or none."""
        kept = {name: value for name, value in vars(self).items() if name != "_lock"}
        return {**kept, "_running": None, "_stats": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = _find_lock(self.network)

    def make_inputs(self, img: np.ndarray) -> tuple[Tensor, ...]:
        """Resize and normalise an image, RGB uint8 (H, W, 3): one (3, h, w) tensor a scale.

        Raises:
            AdcamError: A scale is smaller than a patch.
        """
        mean, std = self.network.pixel_stats
        sizes = self.resizer.find_sizes((img.shape[0], img.shape[1]))
        return tuple(to_inputs(img, input_hw, mean=mean, std=std) for input_hw in sizes)

    @property
    def resizer(self) -> Resizer:
        """What makes of an image what :meth:`run_inputs` takes."""
        return Resizer(self.views, self.network.patch_size)

    def run(self, imgs: Sequence[np.ndarray]) -> Passes:
        """Run the network on images, RGB uint8 (H, W, 3), of equal input sizes, such as one.

        Raises:
            AdcamError: A scale is smaller than a patch, or the input sizes differ.
        """
        return self.run_inputs([self.resizer(img) for img in imgs])

    def run_inputs(self, inputs: Sequence[Sequence[Tensor]]) -> Passes:
        """Run the network on a batch of images that :attr:`resizer` has resized.

        Args:
            inputs: The tensors of each image, of equal sizes at each scale.

        Raises:
            AdcamError: The sizes differ.
        """
        if len({tuple(tensor.shape for tensor in of_image) for of_image in inputs}) != 1:
            raise AdcamError("the images of a batch must have equal input sizes at every scale")
        batches = [torch.stack(x).to(self.device) for x in zip(*inputs, strict=True)]
        return self.run_batch(batches)

    def run_batch(self, batches: Sequence[Tensor], *, run: Forward | None = None) -> Passes:
        """Run the network on images that are on its device already.

        Args:
            batches: The pixels at each scale, uint8 (B, 3, h, w).
            run: What runs :meth:`forward`, such as a cache of graphs; by default it is called.
        """
        token_maps = (run or self.forward)(*batches)
        return Passes(token_maps, len(batches[0]))

    def forward(self, *batches: Tensor) -> tuple[TokenMaps, ...]:
        """Normalise, mirror, and run the network at every scale.

        On a GPU nothing here waits for the device. Passes of a network take turns, whatever threads
        and makers they come from: attention is read by hooks, which would meet those of another.

        Args:
            *batches: As for :meth:`run_batch`.
        """
        with self._lock:
            return self._run_network(self._prepare_network(), batches)

    def _run_network(self, network: Network, batches: Sequence[Tensor]) -> tuple[TokenMaps, ...]:
        is_half = self.dtype != torch.float32
        with (
            self._pinned(),
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=is_half),
        ):
            views = [self._make_views(batch) for batch in batches]
            if of_sizes := getattr(network, "token_maps_of_sizes", None):  # such as a TokenCAM
                maps: tuple[TokenMaps, ...] = of_sizes(views, layer_sets=self.layer_sets)
                return maps
            return tuple(network.token_maps(x, layer_sets=self.layer_sets) for x in views)

    def _make_views(self, batch: Tensor) -> Tensor:
        """Normalise, and put each image's mirrored version behind it."""
        batch = normalize_pixels(batch, *self._pixel_stats())
        if self.views.flip:
            batch = torch.stack([batch, batch.flip(-1)], dim=1).flatten(0, 1)
        return batch

    def _prepare_network(self) -> Network:
        """The network as it runs on the device: in half precision on a GPU, a copy.

        It is made in the first pass, since a compiled module cannot be pickled.
        """
        if self._running is None or self._running[0] != self.device:
            is_rounded = self.device.type == "cuda" and self.dtype != torch.float32
            network = round_weights(self.network, self.dtype) if is_rounded else self.network
            if is_rounded:  # in this stream: a pass in another could begin before it is done
                torch.cuda.current_stream(self.device).synchronize()
            if self._compile:
                compile_mlps(network)
            self._running = self.device, network
        return self._running[1]

    def _pixel_stats(self) -> tuple[Tensor, Tensor]:
        """Channel means and deviations on the device, sent there once."""
        if self._stats is None or self._stats[0].device.type != self.device.type:
            self._stats = channel_stats(self.network.pixel_stats, self.device)
        return self._stats

    def compute_maps(
        self,
        passes: Passes,
        class_ids: Sequence[Sequence[int]],
        imgs: Sequence[np.ndarray],
        *,
        method: Method | None = None,
        map_hw: tuple[int, int] | None = None,
        keep_on_device: bool = False,
    ) -> list[ClassMaps]:
        """Compute the maps of every image of a batch by one method, fused over scales and views.

        Args:
            passes: The result of :meth:`run` or :meth:`run_inputs`.
            class_ids: The present classes of each image, in any order; their numbers may differ.
                Only their maps are computed.
            imgs: The images, RGB uint8 (H, W, 3), whose colours a method may follow.
            method: One of ``methods``; by default the first.
            map_hw: Height and width of the maps; by default those of each image.
            keep_on_device: Whether the maps also stay on the device, for a CRF there.

        Returns:
            The maps of each image; where it has no class, they are (0, H, W). Others are
            :class:`adcam.labeling.mask_maker.DeviceMaps` if they stay on the device.

        Raises:
            AdcamError: A class id is out of range.
        """
        hws = [map_hw or (img.shape[0], img.shape[1]) for img in imgs]
        chosen = self.methods[0] if method is None else method
        pixels = [torch.from_numpy(img) for img in imgs] if count_color_steps(chosen) else []
        present = [tuple(sorted(set(ids))) for ids in class_ids]
        fused = self.compute_on_device(
            passes, present, [x.to(self.device) for x in pixels], hws, method=chosen
        )
        on_host = to_host(fused)
        return [
            DeviceMaps(ids, array, maps) if keep_on_device and ids else ClassMaps(ids, array)
            for ids, array, maps in zip(present, on_host, fused, strict=True)
        ]

    def compute_on_device(
        self,
        passes: Passes,
        class_ids: Sequence[tuple[int, ...]],
        pixels: Sequence[Tensor],
        hws: Sequence[tuple[int, int]],
        *,
        method: Method | None = None,
    ) -> list[Tensor]:
        """As :meth:`compute_maps`, where the network runs, which is not waited for.

        Args:
            passes: The result of :meth:`run_batch`.
            class_ids: The present classes of each image, ascending and without repetition.
            pixels: The images, RGB uint8 (H, W, 3), on the device; not read by methods that do not
                follow colours.
            hws: Height and width of the maps of each image.
            method: One of ``methods``; by default the first.

        Returns:
            (K, H, W) float32 in [0, 1] of each image.

        Raises:
            AdcamError: A class id is out of range.
        """
        chosen = self.methods[0] if method is None else method
        most = max(map(len, class_ids))
        if most == 0:
            return [torch.zeros(0, *hw, dtype=torch.float32, device=self.device) for hw in hws]
        # All images of a batch need the same number of classes: those with fewer repeat their last
        # class, and these copies are dropped in the end.
        padded = torch.tensor([_repeat_last(ids, most) for ids in class_ids])  # (images, K)
        num_classes = passes.token_maps[0].cam.shape[1]
        check_class_ids(padded, batch=len(class_ids), num_classes=num_classes)
        num_views = 2 if self.views.flip else 1
        with self._pinned(), torch.inference_mode():
            repeated = padded.repeat_interleave(num_views, dim=0)
            ids = repeated.to(self.device, non_blocking=True)
            grids = [chosen(maps, ids).unflatten(0, (-1, num_views)) for maps in passes.token_maps]
            fused = fuse_batch(grids, pixels, hws, color_steps=count_color_steps(chosen))
            return [maps[: len(ids)] for maps, ids in zip(fused, class_ids, strict=True)]

    def _pinned(self) -> AbstractContextManager[None]:
        return one_thread() if self.device.type == "cpu" else nullcontext()


_LOCKS: weakref.WeakValueDictionary[int, threading.Lock] = weakref.WeakValueDictionary()
"""The lock of each network by its id, as long as a maker holds both."""


def _find_lock(network: Network) -> threading.Lock:
    """Find the lock that all makers of a network share."""
    return _LOCKS.setdefault(id(network), threading.Lock())


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or a GPU if there is one.

    Args:
        device: For example ``"cpu"`` or ``"cuda:0"``; ``None`` to choose.

    Raises:
        AdcamError: torch does not know the device, or it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise AdcamError(f"device must be such as 'cpu' or 'cuda:0', got {device!r}") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise AdcamError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} GPUs "
            "(`adcam info` says more)"
        )
    if resolved.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=resolved).tolist()
        except (RuntimeError, AssertionError) as error:
            reason = one_line(error).partition(". ")[0]
            raise AdcamError(f"device {str(device)!r} cannot be used: {reason}") from error
    return resolved


def compile_mlps(network: Network) -> None:
    """Compile the MLPs of a ViT that are not compiled yet, for inputs of any size.

    The attention stays as it is: compiled, it would be traced again for every block, since each
    has its own hooks (:mod:`adcam.models.attention_capture`).
    """
    for module in network.modules() if isinstance(network, torch.nn.Module) else ():
        if isinstance(module, Mlp) and module._compiled_call_impl is None:
            module.compile(dynamic=True)


def round_weights(network: Network, dtype: torch.dtype) -> Network:
    """Return a copy of a network whose weights are rounded already, as autocast would round them.

    Autocast rounds them in every pass, to the same numbers and with a kernel launch for each.

    Args:
        network: The network, which stays as it is; what is no module is returned itself.
        dtype: The type that autocast rounds to.
    """
    if not isinstance(network, torch.nn.Module):
        return network
    rounded = copy.deepcopy(network)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return rounded


def find_layer_sets(method: Method, network: Network) -> tuple[tuple[int, ...], ...]:
    """Find the sets of blocks whose attention a method reads of a network.

    Raises:
        AdcamError: The network has no such blocks; the message names it.
    """
    try:
        return method.layer_sets(network.depth)
    except ValueError as error:
        raise AdcamError(f"{network.name}: {error}") from error


def count_color_steps(method: Method) -> int:
    """Return how many steps a method's maps spread along colours: 0 without such an option."""
    steps: int = getattr(method, "color_steps", 0)
    return steps


def _copy_tensors(maps: TokenMaps) -> TokenMaps:
    def copy_value(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: copy_value(of_key) for key, of_key in value.items()}
        return value.clone() if isinstance(value, Tensor) else value

    return replace(maps, **{name: copy_value(value) for name, value in vars(maps).items()})


def _repeat_last(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Fill up with the last id: a class does not compete with itself, so no map changes."""
    return (*ids, *[ids[-1] if ids else 0] * (length - len(ids)))
