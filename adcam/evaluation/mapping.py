"""From images to the maps of many methods, one network pass for all methods of the same views."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from adcam.cams import Method
from adcam.data.dataset import Record
from adcam.data.score_maps import find_score_map, read_score_map
from adcam.errors import AdcamError
from adcam.labeling.graphs import GraphCache
from adcam.labeling.inputs import plan_batches
from adcam.labeling.labeler import find_mask_device
from adcam.labeling.lanes import cache_graphs
from adcam.labeling.map_maker import Forward, MapMaker, Network
from adcam.labeling.mask_maker import DeviceMaps, MaskMaker, apply_rule
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

    def map_batch(self, images: Sequence[Wanted], *, batch_size: int = 1) -> list[MappedImage]:
        """Make the maps of several images; those of equal input sizes share a pass of a network.

        On a GPU also the masks, together: a CRF there takes a hundredth of its time on a CPU.

        Args:
            images: The images with what is wanted of each.
            batch_size: Most images in a pass, of which there are fewer where memory is short. The
                last bits of a result depend on how many share it.
        """
        found = [
            {
                name: self._read_stored(folder, image.sample)
                for name, folder in self._stored.items()
                if name in image.names
            }
            for image in images
        ]
        masks: list[dict[Any, PseudoMask]] = [{} for _ in images]
        for group in self._groups:
            asked = [i for i, image in enumerate(images) if not image.names.isdisjoint(group.names)]
            inputs = [group.maker.resizer(images[i].sample.img) for i in asked]
            for places in plan_batches(inputs, batch_size):
                batch = [(images[asked[place]], inputs[place]) for place in places]
                made = compute_in_halves(batch, partial(self._try, group))
                for place, (of_image, masks_of_image) in zip(places, made, strict=True):
                    found[asked[place]] |= of_image
                    masks[asked[place]] |= masks_of_image
        return [
            MappedImage(image.index, image.sample, of_image, image.seconds, kept)
            for image, of_image, kept in zip(images, found, masks, strict=True)
        ]

    def _try(
        self, group: _Group, batch: Sequence[tuple[Wanted, Sequence[torch.Tensor]]]
    ) -> list[tuple[dict[str, MethodMaps], dict[MaskChoice, PseudoMask]]]:
        """Compute a batch; what comes after one that fails gets the memory of all graphs."""
        try:
            return self._make(group, batch)
        except RuntimeError:
            for other in self._groups:
                if isinstance(other.forward, GraphCache):
                    other.forward.free_memory()
            raise

    def _make(
        self, group: _Group, batch: Sequence[tuple[Wanted, Sequence[torch.Tensor]]]
    ) -> list[tuple[dict[str, MethodMaps], dict[MaskChoice, PseudoMask]]]:
        """The maps of images, with their equal inputs, by the methods each asks one network for.

        With the masks that are made of them where the network is.
        """
        start = time.perf_counter()
        data_ids, names, maker = group.data_ids, group.names, group.maker
        images = [image for image, _ in batch]
        passes = maker.run_inputs([inputs for _, inputs in batch], run=group.forward)
        scores = passes.compute_scores()
        between = time.perf_counter()
        tops = np.argsort(-scores, axis=1, kind="stable")[:, : self._targets.top_k].tolist()
        given = [
            [i for i, data_id in data_ids.items() if data_id in (image.sample.class_ids or ())]
            for image in images
        ]
        choices = {
            choice: device
            for choice in {choice for image in images for choice in image.choices}
            if choice.name in names
            and (device := find_mask_device(self.device, choice.crf)) != "cpu"
        }
        made: dict[int, list[ClassMaps]] = {}
        for name in names:
            method = self._methods[name]
            if id(method) in made or not any(name in image.names for image in images):
                continue
            maps = maker.compute_maps(
                passes,
                [[*ids, *top] for ids, top in zip(given, tops, strict=True)],
                [image.sample.img for image in images],
                method=method,
                map_hw=self._targets.map_hw,
                keep_on_device=bool(choices),
            )
            made[id(method)] = [_rename_classes(of_image, data_ids) for of_image in maps]
        after = time.perf_counter()
        masks = self._make_masks(
            images, {c: (made[id(self._methods[c.name])], device) for c, device in choices.items()}
        )
        steps = {"network": between - start, "methods": after - between}
        if choices:
            steps["masks"] = time.perf_counter() - after
        for image in images:
            for step, spent in steps.items():
                image.seconds[step] += spent / len(images)  # type: ignore[assignment]
        results = []
        for place, image in enumerate(images):
            top = tuple(data_ids[i] for i in tops[place])
            ids = given[place]
            confidence = float(scores[place][ids].min()) if ids else None
            of_methods = {
                name: made[id(self._methods[name])][place] for name in names if name in image.names
            }
            maps_of_image = {
                name: MethodMaps(found.class_ids, found.score_maps, top, confidence)
                for name, found in of_methods.items()
            }
            results.append((maps_of_image, masks[place]))
        return results

    def _make_masks(
        self,
        images: Sequence[Wanted],
        choices: Mapping[MaskChoice, tuple[Sequence[ClassMaps], str]],
    ) -> list[dict[MaskChoice, PseudoMask]]:
        """Make the masks that are wanted of images, of the maps and on the device of each choice.

        As ``adcam generate`` makes them, with one CRF for all images.
        """
        masks: list[dict[MaskChoice, PseudoMask]] = [{} for _ in images]
        for choice, (maps, device) in choices.items():
            maker = MaskMaker(choice.rule, None, choice.crf, "auto", self._mask_values, device)
            asking = [i for i, image in enumerate(images) if choice in image.choices]
            samples = [images[i].sample for i in asking]
            made = maker.make_batch(
                [maps[i] for i in asking],
                [sample.img for sample in samples],
                [sample.ori_hw for sample in samples],
            )
            for i, mask in zip(asking, made, strict=True):
                masks[i][choice] = mask
        return masks

    def _read_stored(self, folder: str, sample: Sample) -> MethodMaps:
        image_id = path_below_root(sample, self._targets.image_root)
        path = find_score_map(Path(folder).expanduser(), image_id)
        return MethodMaps(sample.class_ids or (), read_score_map(path)[None])


def _rename_classes(maps: ClassMaps, data_ids: Mapping[int, int]) -> ClassMaps:
    """Return maps with the data set's class ids, ascending, in place of the network's."""
    ids = [data_ids[i] for i in maps.class_ids]
    changed: dict[str, Any] = {"class_ids": tuple(sorted(ids))}
    if ids != sorted(ids):
        order = np.argsort(ids)
        changed["score_maps"] = maps.score_maps[order]
        if isinstance(maps, DeviceMaps):
            changed["on_device"] = maps.on_device[order.tolist()]
    return replace(maps, **changed)


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
