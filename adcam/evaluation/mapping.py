"""From images to the maps of many methods, one network pass for all methods of the same views."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from adcam.cams import Method
from adcam.data.dataset import Record
from adcam.data.score_maps import find_score_map, read_score_map
from adcam.errors import AdcamError
from adcam.labeling.graphs import free_graphs
from adcam.labeling.inputs import plan_batches
from adcam.labeling.labeler import find_mask_device
from adcam.labeling.lanes import Batch, Found, Lanes, MaskOrder, cache_graphs
from adcam.labeling.map_maker import Forward, MapMaker, Network
from adcam.labeling.mask_maker import MaskMaker, apply_rule
from adcam.labeling.steps import compute_in_halves
from adcam.masks.background import BackgroundRule
from adcam.masks.crf import build_refinement
from adcam.settings import MethodSpec, TestViews
from adcam.structures import ClassMaps, ClassSet, PseudoMask, Sample


def check_names(specs: Sequence[MethodSpec]) -> None:
    """Refuse an empty comparison, and methods that share a name.

    Args:
        specs: The methods.

    Raises:
        AdcamError: There is no method, or two have one name.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) < len(names):
        raise AdcamError(f"methods to compare need different names, got {names}")


def describe_method(spec: MethodSpec) -> dict[str, Any]:
    """Return what tables of methods say of one by column, its options as ``"power=3.0"``."""
    return {
        "name": spec.name,
        "network": spec.network,
        "method": spec.method or "stored maps",
        "options": " ".join(f"{key}={value}" for key, value in sorted(spec.options.items())),
        "scales": " ".join(map(str, spec.views.scales)),
        "keep_ratio": int(spec.views.keep_ratio),
        "flip": int(spec.views.flip),
        "crf": "" if spec.crf == "none" else spec.crf,
    }


class Classifier(Protocol):
    """A network with the names of its classes, such as a loaded classifier file."""

    @property
    def network(self) -> Network:
        """The network in eval mode."""
        ...

    @property
    def class_set(self) -> ClassSet:
        """The classes in the order of the network's outputs."""
        ...


@dataclass(frozen=True)
class MapTargets:
    """Which maps the loop makes of every image besides those of its labelled classes.

    Attributes:
        top_k: The number of classes with the highest predicted scores that also get maps.
        map_hw: Height and width of the maps; ``None`` makes them as large as the image.
        image_root: The folder that the paths of stored score maps start in.
    """

    top_k: int = 0
    map_hw: tuple[int, int] | None = None
    image_root: Path | None = None


@dataclass(frozen=True, eq=False)
class MethodMaps(ClassMaps):
    """The maps that one method makes of an image, with class ids of the data set.

    Attributes:
        top_predictions: The classes with the highest scores, best first. A class that only the
            network knows has an id from the number of the data set's classes on.
        confidence: The probability of the least likely of the labelled classes, in [0, 1]; ``None``
            without labels, and for stored maps.
    """

    top_predictions: tuple[int, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True)
class MaskChoice:
    """How the maps of a method become a mask.

    Attributes:
        name: The name of the method.
        rule: Where background ends.
        crf: The CRF's parameter set, or ``"none"``.
    """

    name: str
    rule: BackgroundRule
    crf: str = "none"


@dataclass(frozen=True, eq=False)
class MappedImage:
    """An image with the maps of every method that an evaluator asked for.

    Attributes:
        index: The position of the image in the data set.
        sample: The image with its labels and ground truth.
        maps: The maps by name of the method.
        seconds: Time by step that the image has taken so far.
        _kept: The masks that are there already, on a GPU those that were made beside the network;
            and the CRF of the image by its parameter set.
    """

    index: int
    sample: Sample
    maps: Mapping[str, MethodMaps]
    seconds: Counter[str] = field(default_factory=Counter)
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def make_mask(self, choice: MaskChoice, mask_values: Sequence[int]) -> PseudoMask:
        """Make a mask of one method, once however many evaluators want it.

        The CRF's lattice is built once for each parameter set.

        Args:
            choice: The method, the background rule and the CRF.
            mask_values: The mask value of each class of the data set.
        """
        if choice not in self._kept:
            self._kept[choice] = self._compute_mask(choice, mask_values)
        mask: PseudoMask = self._kept[choice]
        return mask

    def _compute_mask(self, choice: MaskChoice, mask_values: Sequence[int]) -> PseudoMask:
        maps = self.maps[choice.name]
        if choice.crf == "none" or not maps.class_ids:
            return apply_rule(maps, choice.rule, mask_values)
        if choice.crf not in self._kept:
            self._kept[choice.crf] = build_refinement(self.sample.img, crf=choice.crf)
        return apply_rule(maps, choice.rule, mask_values, crf=self._kept[choice.crf])


@dataclass(frozen=True, eq=False)
class Wanted:
    """An image that was read, and the methods whose maps are wanted of it.

    Attributes:
        index: The position of the image in its data set.
        sample: The image.
        names: The names of the methods.
        seconds: Time by step, which is added to.
        choices: The masks that are wanted of it.
    """

    index: int
    sample: Sample
    names: Set[str]
    seconds: Counter[str] = field(default_factory=Counter)
    choices: Set[MaskChoice] = frozenset()


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image with what any thread can get ready.

    Attributes:
        image: The image and what is wanted of it.
        inputs: What each network that is asked will see, by its place in the mapper.
        stored: The maps by methods that compute none.
    """

    image: Wanted
    inputs: Mapping[int, tuple[torch.Tensor, ...]]
    stored: Mapping[str, MethodMaps]


@dataclass(frozen=True)
class _Group:
    """A network with its views and the methods that share its passes.

    Attributes:
        data_ids: The data set's id of each of its classes.
        names: The names of the methods.
        maker: Makes their maps.
        forward: What runs the network.
    """

    data_ids: Mapping[int, int]
    names: Sequence[str]
    maker: MapMaker
    forward: Forward

    def find_given(self, sample: Sample) -> list[int]:
        """The network's ids of the classes that an image is labelled with."""
        given = sample.class_ids or ()
        return [i for i, data_id in self.data_ids.items() if data_id in given]


@dataclass(frozen=True, eq=False)
class _Share:
    """The images of a batch, and the network that sees them together.

    Attributes:
        place: The place of the network in the mapper.
        images: The images.
        choices: The masks that are made where the network is.
        whole: The group of images of which this batch is the last; ``None`` for its others.
    """

    place: int
    images: Sequence[Prepared]
    choices: Sequence[MaskChoice]
    whole: Sequence[Prepared] | None


@dataclass(frozen=True, eq=False)
class _Part:
    """What was found of a batch that failed at first, or of a group that needs no network.

    Attributes:
        found: What was found.
        whole: As of :class:`_Share`.
    """

    found: Sequence[Found]
    whole: Sequence[Prepared] | None


class ImageMapper:
    """Makes the maps of all methods of an image; a worker process gets it once.

    Attributes:
        device: The device that the networks run on.
    """

    def __init__(
        self,
        specs: Sequence[MethodSpec],
        classifiers: Mapping[str, Classifier],
        class_set: ClassSet,
        targets: MapTargets,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Prepare the networks.

        Args:
            specs: The methods; those of the same network and views share its passes.
            classifiers: The networks by name.
            class_set: The classes of the data set, which are matched by name.
            targets: Which maps to make.
            device: The device that the networks run on.
            dtype: The type that they compute in.

        Raises:
            AdcamError: A network is not there, does not know a class of the data, or lacks blocks
                that a method reads.
        """
        self.device = device
        self._targets = targets
        self._mask_values = class_set.mask_values
        self._stored = {spec.name: spec.score_maps for spec in specs if spec.score_maps}
        # Equal methods (for example with and without a CRF) share one object, and so their maps.
        distinct: list[Method] = []
        self._methods: dict[str, Method] = {}
        groups: dict[tuple[str, TestViews], list[str]] = defaultdict(list)
        for spec in specs:
            if spec.method:
                method = spec.build()
                distinct += [method] if method not in distinct else []
                self._methods[spec.name] = distinct[distinct.index(method)]
                groups[spec.network, spec.views].append(spec.name)
        self._groups = []
        for (network, views), names in groups.items():
            data_ids = match_classes(network, classifiers, class_set)
            maker = MapMaker(
                classifiers[network].network,
                [self._methods[name] for name in names],
                views=views,
                device=device,
                dtype=dtype,
            )
            self._groups.append(_Group(data_ids, names, maker, cache_graphs(maker)))
        self._lanes = Lanes(device, self._retry)

    def find_sizes(self, hw: tuple[int, int], names: Set[str]) -> Hashable:
        """Find what an image has in common with those that share all of its passes.

        Args:
            hw: Height and width of the image.
            names: The names of the methods that are wanted of it.

        Raises:
            AdcamError: A scale is smaller than a patch.
        """
        return tuple(
            (i, group.maker.resizer.find_sizes(hw))
            for i, group in enumerate(self._groups)
            if not names.isdisjoint(group.names)
        )

    def prepare(self, image: Wanted) -> Prepared:
        """Resize an image for the networks, and read what is stored of it; in any thread.

        Raises:
            AdcamError: A scale is smaller than a patch, or a stored map cannot be read.
        """
        inputs = {
            place: group.maker.resizer(image.sample.img)
            for place, group in enumerate(self._groups)
            if not image.names.isdisjoint(group.names)
        }
        stored = {
            name: self._read_stored(folder, image.sample)
            for name, folder in self._stored.items()
            if name in image.names
        }
        return Prepared(image, inputs, stored)

    def map_batch(self, images: Sequence[Wanted], *, batch_size: int = 1) -> list[MappedImage]:
        """Make the maps of several images; those of equal input sizes share a pass of a network.

        On a GPU also the masks, together: a CRF there takes a hundredth of its time on a CPU.

        Args:
            images: The images with what is wanted of each.
            batch_size: Most images in a pass, of which there are fewer where memory is short. The
                last bits of a result depend on how many share it.
        """
        prepared = [self.prepare(image) for image in images]
        parts: list[Found] = []
        for place, together in self._divide(prepared, batch_size):
            parts += self._compute_in_halves(place, together)
        return self._join(prepared, parts)

    def map_ahead(
        self, groups: Iterable[Sequence[Prepared]], *, batch_size: int
    ) -> Generator[list[MappedImage], None, None]:
        """As :meth:`map_batch`, of group after group through the lanes of a device.

        Args:
            groups: The images of each group.
            batch_size: As for :meth:`map_batch`.
        """
        parts: list[Found] = []
        with closing(self._lanes.run(self._plan_all(groups, batch_size))) as done:
            for item in done:
                is_found = isinstance(item, Found)
                part = _Part([item], item.batch.origin.whole) if is_found else item
                parts += part.found
                if part.whole is not None:
                    yield self._join(part.whole, parts)
                    parts = []

    def _plan_all(
        self, groups: Iterable[Sequence[Prepared]], batch_size: int
    ) -> Iterator[Batch | _Part]:
        for images in groups:
            parts = [*self._divide(images, batch_size)]
            for num, (place, together) in enumerate(parts, 1):
                # That a group ends is no item of its own: in each lane it would take the place of
                # the next batch, which then began when this one had come back.
                whole = images if num == len(parts) else None
                yield self._plan(place, together, self._groups[place].forward, whole)
            if not parts:
                yield _Part([], images)

    def _divide(
        self, images: Sequence[Prepared], batch_size: int
    ) -> Iterator[tuple[int, list[Prepared]]]:
        """Yield each network's place with images that it sees together."""
        for place in range(len(self._groups)):
            asked = [image for image in images if place in image.inputs]
            for places in plan_batches([image.inputs[place] for image in asked], batch_size):
                # Those of equal sizes in a row are labelled together.
                together = (asked[i] for i in places)
                yield place, sorted(together, key=lambda x: x.image.sample.ori_hw)

    def _plan(
        self,
        place: int,
        images: Sequence[Prepared],
        forward: Forward,
        whole: Sequence[Prepared] | None = None,
    ) -> Batch:
        """Say what is wanted of images that a network sees together."""
        group = self._groups[place]
        samples = [x.image.sample for x in images]
        given = [group.find_given(sample) for sample in samples]
        methods: list[Method] = []
        for name in group.names:
            if any(name in x.image.names for x in images) and self._methods[name] not in methods:
                methods.append(self._methods[name])
        devices = {
            choice: device
            for choice in {choice for x in images for choice in x.image.choices}
            if choice.name in group.names
            and (device := find_mask_device(self.device, choice.crf)) != "cpu"
        }
        orders = [
            MaskOrder(
                MaskMaker(choice.rule, None, choice.crf, "auto", self._mask_values, device),
                methods.index(self._methods[choice.name]),
                [i for i, x in enumerate(images) if choice in x.image.choices],
            )
            for choice, device in devices.items()
        ]
        top_k = self._targets.top_k
        return Batch(
            _Share(place, images, [*devices], whole),
            [sample.img for sample in samples],
            [x.inputs[place] for x in images],
            group.maker,
            forward,
            methods,
            lambda i, probs: [*given[i], *_find_top(probs, top_k)],
            needs_scores=top_k > 0,
            orders=orders,
            wants_maps=[True] * len(images),
            map_hw=self._targets.map_hw,
            data_ids=group.data_ids,
        )

    def _retry(self, batch: Batch, is_short: bool) -> _Part:
        """Compute a batch once more, here; it gets the memory of all graphs where that is short."""
        for group in self._groups if is_short else ():
            free_graphs(group.forward)
        share: _Share = batch.origin
        return _Part(self._compute_in_halves(share.place, share.images), share.whole)

    def _compute_in_halves(self, place: int, images: Sequence[Prepared]) -> list[Found]:
        """Compute images that a network sees together, fewer at once where memory is short."""

        def compute(images: Sequence[Prepared]) -> list[Found]:
            # No graphs, which are of the lane of the network alone.
            return [
                self._lanes.compute(self._plan(place, images, self._groups[place].maker.forward))
            ]

        return compute_in_halves(images, compute)

    def _join(self, images: Sequence[Prepared], parts: Iterable[Found]) -> list[MappedImage]:
        """Join what was found of images, network by network."""
        maps = {x.image.index: {**x.stored} for x in images}
        masks: dict[int, dict[Any, Any]] = {x.image.index: {} for x in images}
        for found in parts:
            share: _Share = found.batch.origin
            group = self._groups[share.place]
            steps = ("network", "methods", *(["masks"] if share.choices else []))
            for i, x in enumerate(share.images):
                for step, spent in zip(steps, found.seconds, strict=False):
                    x.image.seconds[step] += spent  # type: ignore[assignment]
                scores, given = found.scores[i], group.find_given(x.image.sample)
                top = tuple(group.data_ids[k] for k in _find_top(scores, self._targets.top_k))
                confidence = float(scores[given].min()) if given else None
                for name in x.image.names & {*group.names}:
                    array = found.maps[found.batch.methods.index(self._methods[name])][i]
                    assert array is not None
                    made = MethodMaps(found.class_ids[i], array, top, confidence)
                    maps[x.image.index][name] = made
                for order, choice in enumerate(share.choices):
                    if choice in x.image.choices:
                        masks[x.image.index][choice] = found.make_mask(order, i)
        return [
            MappedImage(
                x.image.index,
                x.image.sample,
                maps[x.image.index],
                x.image.seconds,
                masks[x.image.index],
            )
            for x in images
        ]

    def _read_stored(self, folder: str, sample: Sample) -> MethodMaps:
        image_id = path_below_root(sample, self._targets.image_root)
        path = find_score_map(Path(folder).expanduser(), image_id)
        return MethodMaps(sample.class_ids or (), read_score_map(path)[None])


def _find_top(probs: np.ndarray, top_k: int) -> list[int]:
    """Return the classes of the highest probabilities (C,), the highest first."""
    top: list[int] = np.argsort(-probs, kind="stable")[:top_k].tolist()
    return top


def match_classes(
    name: str, classifiers: Mapping[str, Classifier], class_set: ClassSet
) -> dict[int, int]:
    """Return the data set's id of each class of a network.

    Classes that the data set does not know are numbered after its own.

    Args:
        name: The name of the network.
        classifiers: The networks by name.
        class_set: The classes of the data set.

    Raises:
        AdcamError: The network is not there, or does not know a class of the data set.
    """
    if name not in classifiers:
        raise AdcamError(f"there is no network {name!r}; there are {sorted(classifiers)}")
    known = classifiers[name].class_set.classes
    if missing := [c for c in class_set.classes if c not in known]:
        raise AdcamError(
            f"network {name!r} does not know {missing}; its classes are {list(known)}. Classes are "
            "matched by name: data.classes names those of the data"
        )
    order = [*class_set.classes, *(c for c in known if c not in class_set.classes)]
    position = {c: i for i, c in enumerate(order)}
    return {i: position[c] for i, c in enumerate(known)}


def path_below_root(sample: Sample | Record, image_root: Path | None) -> str:
    """Return the path of an image as wsolevaluation's metadata give it, suffix included.

    Raises:
        AdcamError: The image is no file, or there is no root.
    """
    if sample.img_path is None or image_root is None:
        raise AdcamError(f"{sample.img_id}: stored maps are found by the image's path below a root")
    return sample.img_path.relative_to(image_root).as_posix()


@contextmanager
def timed(seconds: Counter[str], step: str) -> Iterator[None]:
    """Add the time that the body takes to ``seconds[step]``."""
    start = time.perf_counter()
    yield
    seconds[step] += time.perf_counter() - start  # type: ignore[assignment]
