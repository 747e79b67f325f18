"""The loop: what is read and computed once, and the same bits however the work is spread."""

from __future__ import annotations

import json
import os
import signal
import threading
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cams import build_method
from adcam.data import dataset
from adcam.data.dataset import ImageDataset
from adcam.data.sources import build_dataset
from adcam.evaluation import loop, mapping
from adcam.evaluation.compare import MethodComparison, compare_methods, format_csv
from adcam.evaluation.loop import LoopOptions, evaluate
from adcam.evaluation.mapping import (
    ImageMapper,
    MappedImage,
    MapTargets,
    MaskChoice,
    Prepared,
    Wanted,
)
from adcam.evaluation.mask_folder import build_labeler
from adcam.evaluation.masks import MaskScores, ThresholdSweep
from adcam.evaluation.pictures import Pictures, SmallImage, _Packed
from adcam.labeling import executor, lanes, mask_maker
from adcam.labeling.generate import generate
from adcam.labeling.graphs import GraphCache
from adcam.labeling.inputs import BATCH_SIZE, Resizer, plan_groups
from adcam.labeling.map_maker import MapMaker
from adcam.labeling.mask_maker import MaskMaker
from adcam.labeling.steps import Task, find_input_sizes
from adcam.masks.background import BackgroundRule
from adcam.masks.crf import refine_batch
from adcam.metrics.miou import MeanIoU
from adcam.models.classifier_file import ClassifierFile
from adcam.models.token_cam import TokenCAM
from adcam.settings import MethodSpec, TestViews

ONE, TWO = TestViews((32,)), TestViews((32, 48), flip=True)
SPECS = [
    MethodSpec("CAM", "cam", views=ONE),
    MethodSpec("TS-CAM", "ts_cam", views=ONE),
    MethodSpec("AD-CAM, two scales", "ad_cam", views=TWO),
    MethodSpec("AD-CAM", "ad_cam", views=ONE),
    MethodSpec("AD-CAM + CRF", "ad_cam", views=ONE, crf="toco", crf_thresholds=(0.3, 0.6)),
]


@pytest.fixture
def splits(mini_settings: Any) -> tuple[ImageDataset, ImageDataset]:
    """Two images to choose on, nine to report on."""
    data = mini_settings.data
    return build_dataset(data, "train")[:2], build_dataset(data, "val")[:9]


@pytest.fixture
def classifier(splits: tuple[ImageDataset, ImageDataset]) -> ClassifierFile:
    """A network of random weights for the classes of the generated set."""
    torch.manual_seed(0)
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=splits[0].class_set.num_fg_classes,
        img_size=32,
        backbone_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2},
    )
    return ClassifierFile(network.eval(), splits[0].class_set)


def count_calls(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[Any], *, by_path: bool
) -> None:
    real = getattr(owner, name)

    def count(*args: Any, **options: Any) -> Any:
        calls[args[0] if by_path else name] += 1
        return real(*args, **options)

    monkeypatch.setattr(owner, name, count)


def test_each_image_is_read_once_and_seen_once_for_each_set_of_views(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: Counter[Any] = Counter()
    passes: Counter[Any] = Counter()
    count_calls(monkeypatch, dataset, "read_image", reads, by_path=True)
    count_calls(monkeypatch, dataset, "read_mask", reads, by_path=True)
    count_calls(monkeypatch, TokenCAM, "token_maps", passes, by_path=False)
    found = compare_methods(
        {"": classifier}, SPECS, *splits, masks_dir=tmp_path / "masks", keep_pictures=True
    )
    records = [record for images in splits for record in images.records]
    files = [path for record in records for path in (record.img_path, record.mask_path)]
    assert reads == dict.fromkeys(files, 1)
    # The first set of views is one scale, the second two scales.
    assert passes["token_maps"] == len(records) * (1 + 2)
    assert len(found.pictures) == len(splits[1])


def describe(found: MethodComparison, images: ImageDataset) -> list[Any]:
    """All that a comparison found, to the bit."""
    exact = [[r.threshold, r.chosen_miou, r.result.to_dict(), r.image_mious] for r in found.results]
    curves = [None if r.curve is None else r.curve.to_dict() for r in found.results]
    confusions = [r.result.confusion.tolist() for r in found.results]
    pictures = [
        [p.img_id, p.img.tolist(), {name: m.tolist() for name, m in (p.maps | p.masks).items()}]
        for p in found.pictures
    ]
    return [exact, curves, confusions, format_csv(found.results, images.class_set), pictures]


def read_masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "masks").iterdir())}


@pytest.mark.parametrize(
    "spread", ["_run_whole", pytest.param("_run_split", marks=pytest.mark.slow)]
)
def test_results_do_not_depend_on_how_the_work_is_spread(
    spread: str,
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process with many threads, in two others, and as where a GPU runs the network."""
    monkeypatch.setattr(loop, "INLINE_LIMIT", 4)
    results = {}
    for name, workers, run in (
        ("here", 0, loop._run_whole),
        ("split", 0, loop._run_split),
        (spread, 2, getattr(loop, spread)),
    ):
        monkeypatch.setattr(loop, "_run_whole", run)
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            found = compare_methods(
                {"": classifier},
                SPECS,
                *splits,
                options=LoopOptions(workers=workers),
                masks_dir=tmp_path / name,
                keep_pictures=True,
            )
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(threads)
        assert found.times["report"].num_processes == max(workers, 1)
        results[name] = (describe(found, splits[1]), read_masks(tmp_path / name))
    assert len(results["here"][1]) == len(splits[1])
    assert all(result == results["here"] for result in results.values())


@pytest.mark.parametrize(
    "spec",
    [SPECS[-1], MethodSpec("AD-CAM", "ad_cam", views=ONE, crf="toco", rule="steepest:0.5")],
    ids=["chosen", "rule"],
)
def test_masks_are_those_of_generate(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    tmp_path: Path,
    spec: MethodSpec,
) -> None:
    """With its configuration and manifest, so that every command knows the folder."""
    found = compare_methods({"": classifier}, [spec], *splits, masks_dir=tmp_path / "a")
    (result,) = found.results
    choice = MaskChoice("x", result.rule, result.spec.crf)
    labeler = build_labeler(classifier, result.spec, choice, LoopOptions())
    generate(splits[1], labeler, tmp_path / "b", progress=False)
    assert read_masks(tmp_path / "a") == read_masks(tmp_path / "b")
    configs = [(tmp_path / name / "config.json").read_text() for name in "ab"]
    assert configs[0] == configs[1]
    manifests = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()
        ]
        for name in "ab"
    ]
    assert manifests[0] == manifests[1]
    # Other masks take the place of those of an earlier comparison.
    compare_methods({"": classifier}, [spec], *splits, masks_dir=tmp_path / "a")
    assert read_masks(tmp_path / "a") == read_masks(tmp_path / "b")


def test_masks_are_made_of_all_images_and_scores_of_every_nth(
    splits: tuple[ImageDataset, ImageDataset], classifier: ClassifierFile, tmp_path: Path
) -> None:
    networks = {"": classifier}
    choose, report = splits
    few = compare_methods(networks, SPECS, choose, report[::3])
    found = compare_methods(
        networks,
        SPECS,
        choose,
        report,
        report_stride=3,
        masks_dir=tmp_path / "masks",
        keep_pictures=True,
    )
    assert format_csv(found.results, report.class_set) == format_csv(few.results, report.class_set)
    assert len(read_masks(tmp_path / "masks")) == 9
    assert [picture.index for picture in found.pictures] == [0, 3, 6]
    assert found.masks.result.num_images == len(found.masks.mious) == 9
    assert found.results[-1].result.num_images == 3
    every_third = {r.img_id: found.masks.mious[r.img_id] for r in report.records[::3]}
    assert found.results[-1].image_mious == every_third


def test_the_spread_of_images_is_that_of_their_masks(
    splits: tuple[ImageDataset, ImageDataset], classifier: ClassifierFile
) -> None:
    found = compare_methods({"": classifier}, SPECS, *splits, keep_pictures=True)
    maker = MapMaker(classifier.network, [build_method("cam")], views=ONE, device="cpu")
    for result in found.results:
        assert len(result.image_mious) == len(splits[1])
    for picture, sample in zip(found.pictures, splits[1], strict=True):
        assert picture.gt is not None and sample.mask is not None
        # Pictures are as large as these small images, so that their masks are the whole masks.
        assert np.array_equal(picture.gt, sample.mask)
        assert list(picture.masks) == [spec.name for spec in SPECS]
        for result in found.results:
            metric = MeanIoU(splits[1].class_set.num_classes)
            metric.update(picture.masks[result.spec.name], sample.mask)
            assert metric.compute().miou == result.image_mious[picture.img_id]
        assert found.results[-1].image_mious == found.masks.mious
        (scores,) = maker.run([sample.img]).compute_scores()
        least_likely = min(scores[i] for i in sample.class_ids or ())
        assert picture.confidence == pytest.approx(least_likely, abs=1e-6)
        assert list(picture.maps) == [spec.name for spec in SPECS[:-1]]
        assert picture.score_map("AD-CAM").shape == picture.img.shape[:2] == sample.ori_hw


def test_pictures_are_bounded_in_size_and_number(
    splits: tuple[ImageDataset, ImageDataset], classifier: ClassifierFile
) -> None:
    images = splits[1]
    pictures = Pictures(["CAM"], [], images.class_set, num_images=len(images), limit=4)
    evaluate(images, SPECS[:1], [pictures], {"": classifier})
    assert [picture.index for picture in pictures.compute()] == [0, 3, 6]
    for picture in pictures.compute():
        maps = picture.maps["CAM"]
        assert maps.dtype == np.uint8 and len(maps) == len(picture.class_ids)
        assert max(maps.shape[1:]) <= 160 and max(picture.img.shape) <= 320


class Killer:
    """Kills the process that counts the third image."""

    step = "kill"
    choices: Sequence[MaskChoice] = ()

    def wants(self, index: int) -> Collection[str]:
        return ["CAM"]

    def reset(self) -> None: ...

    def process(self, image: MappedImage) -> None:
        if image.index == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def merge(self, other: Any) -> None: ...


@pytest.mark.slow  # a process imports torch
def test_an_image_that_kills_its_process_is_named(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "INLINE_LIMIT", 0)
    third = splits[1].records[2].img_id
    with pytest.raises(ValueError, match=f"'{third}'.*killed by SIGKILL.*fewer workers"):
        evaluate(
            splits[1],
            SPECS[:1],
            [Killer()],
            {"": classifier},
            options=LoopOptions(workers=1),
        )


class Order:
    """Keeps the indices of the images in the order in which they are merged."""

    step = "order"
    choices: Sequence[MaskChoice] = ()

    def __init__(self) -> None:
        self.indices: list[int] = []

    def wants(self, index: int) -> Collection[str]:
        return ["CAM"] if index % 2 else []

    def reset(self) -> None:
        self.indices = []

    def process(self, image: MappedImage) -> None:
        assert list(image.maps) == ["CAM"]
        self.indices.append(image.index)

    def merge(self, other: Order) -> None:
        self.indices += other.indices


def test_images_that_nobody_wants_are_left_out_and_progress_counts_the_others(
    splits: tuple[ImageDataset, ImageDataset], classifier: ClassifierFile
) -> None:
    shown: list[Any] = []

    def progress(items: Any, description: str, total: int) -> Any:
        shown.append((description, total))
        for item in items:
            shown.append(item)
            yield item

    order = Order()
    order.indices = [-1]  # counted before: evaluate adds to it
    options = LoopOptions(progress=progress)
    evaluate(splits[1], SPECS, [order], {"": classifier}, options=options)
    assert order.indices == [-1, 1, 3, 5, 7]
    assert shown == [("score val", 4), None, None, None, None]


@pytest.mark.parametrize("masks_on", ["cpu", "cpu:0"])
def test_a_network_may_order_its_classes_otherwise(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
    masks_on: str,
) -> None:
    """Classes are matched by name, so that the order of a network's outputs plays no part."""
    monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: masks_on)

    class Reversed(torch.nn.Module):
        def __init__(self, network: TokenCAM) -> None:
            super().__init__()
            self.network = network
            self.name, self.depth = network.name, network.depth
            self.patch_size, self.pixel_stats = network.patch_size, network.pixel_stats

        def token_maps(self, inputs: Any, *, layer_sets: Sequence[tuple[int, ...]] = ()) -> Any:
            maps = self.network.token_maps(inputs, layer_sets=layer_sets)
            return replace(maps, logits=maps.logits.flip(1), cam=maps.cam.flip(1))

    known = classifier.class_set
    turned = replace(known, classes=known.classes[::-1], mask_values=known.mask_values[::-1])
    other = ClassifierFile(Reversed(classifier.network), turned)  # type: ignore[arg-type]
    results = [
        compare_methods({"": network}, SPECS[:2], *splits).results
        for network in (classifier, other)
    ]
    assert format_csv(results[0], known) == format_csv(results[1], known)


def build_mapper(
    specs: Sequence[MethodSpec], classifier: ClassifierFile, images: ImageDataset
) -> ImageMapper:
    """What makes the maps of images on the processor, in float32."""
    cpu, classes = torch.device("cpu"), images.class_set
    return ImageMapper(
        specs, {"": classifier}, classes, MapTargets(), device=cpu, dtype=torch.float32
    )


def test_images_of_one_size_share_the_passes_of_a_gpu(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same mapper, image by image and in batches; what is asked of each may differ."""
    images, sizes = splits[1], []
    # Not AD-CAM: random weights attend to everything alike, and its maps would be of rounding.
    specs = [*SPECS[:2], MethodSpec("two scales", "ts_cam", views=TWO)]
    mapper = build_mapper(specs, classifier, images)
    token_maps = TokenCAM.token_maps

    def count(self: TokenCAM, inputs: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        return token_maps(self, inputs, **options)

    monkeypatch.setattr(TokenCAM, "token_maps", count)
    names = [{spec.name for spec in specs}, {"CAM"}, {"two scales"}]
    asked = [Wanted(i, images[i], names[i % 3]) for i in range(len(images))]
    together = mapper.map_batch(asked, batch_size=4)
    assert sizes[:2] == [4, 2] and max(sizes[2:]) == 8  # mirrored
    for image, one in zip(together, asked, strict=True):
        (alone,) = mapper.map_batch([Wanted(one.index, one.sample, one.names)])
        assert image.index == alone.index and image.maps.keys() == alone.maps.keys()
        assert set(one.seconds) == {"network", "methods"}
        for name, maps in image.maps.items():
            assert maps.class_ids == alone.maps[name].class_ids
            np.testing.assert_allclose(maps.score_maps, alone.maps[name].score_maps, atol=1e-5)


def turn_every_third(images: ImageDataset, folder: Path) -> ImageDataset:
    """The same images, of which every third stands upright."""

    def turn(path: Path | None) -> Path:
        assert path is not None
        copy = folder / images.split / f"{path.parent.name}-{path.stem}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as img:
            img.transpose(Image.Transpose.ROTATE_90).save(copy)
        return copy

    return images._with_records(
        record
        if index % 3
        else replace(record, img_path=turn(record.img_path), mask_path=turn(record.mask_path))
        for index, record in enumerate(images.records)
    )


def test_a_gpu_counts_images_in_another_order_and_finds_the_same(
    mini_settings: Any,
    classifier: ClassifierFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each image of a batch is computed by itself here, so that results are equal to the bit."""
    choose, report = (
        turn_every_third(build_dataset(mini_settings.data, name)[:11], tmp_path)
        for name in ("train", "val")
    )
    networks = {"": classifier}
    groups: list[list[int]] = []

    def map_one_by_one(
        self: ImageMapper, read: Iterable[Sequence[Prepared]], *, batch_size: int
    ) -> Any:
        for images in read:
            groups.append([one.image.index for one in images])
            yield [mapped for one in images for mapped in self.map_batch([one.image])]

    def compare(name: str) -> Any:
        found = compare_methods(
            networks, SPECS, choose, report, masks_dir=tmp_path / name, keep_pictures=True
        )
        return describe(found, report), read_masks(tmp_path / name)

    expected = compare("a")
    monkeypatch.setattr(loop, "_run_whole", partial(loop._run_split, batch_size=3))
    monkeypatch.setattr(ImageMapper, "map_ahead", map_one_by_one)
    assert compare("b") == expected
    assert groups == [[1, 2, 4], [0, 3, 6], [5, 7, 8], [9], [10]] * 2


def test_a_comparison_needs_the_passes_that_generate_needs(
    mini_settings: Any,
    classifier: ClassifierFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 images of two shapes, in the batches of a GPU."""
    shapes = turn_every_third(build_dataset(mini_settings.data, "train"), tmp_path)
    images = shapes._with_records(
        replace(record, img_id=f"{copy}/{record.img_id}")
        for copy in range(5)
        for record in shapes.records
    )
    sizes: list[tuple[int, ...]] = []
    token_maps = TokenCAM.token_maps

    def note(self: TokenCAM, inputs: torch.Tensor, **options: Any) -> Any:
        sizes.append(tuple(inputs.shape))
        return token_maps(self, inputs, **options)

    monkeypatch.setattr(TokenCAM, "token_maps", note)
    monkeypatch.setattr(loop, "_run_whole", partial(loop._run_split, batch_size=BATCH_SIZE))
    evaluate(images, SPECS[:2], [ThresholdSweep(["CAM"], images.class_set)], {"": classifier})
    maker = MapMaker(classifier.network, [build_method("cam")], views=ONE, device="cpu")
    tasks = [Task(i, r.img_id, r.img_path, r.class_ids) for i, r in enumerate(images.records)]
    find = partial(find_input_sizes, resizer=maker.resizer, max_pixels=1 << 22)
    of_generate = [len(group) for group in plan_groups(tasks, find, batch_size=BATCH_SIZE)]
    assert [size[0] for size in sizes] == of_generate
    assert Counter(of_generate) == {32: 6, 2: 1, 6: 1}  # 130 and 70 images
    # Where only every third image is wanted at two scales too, the batches of those are full.
    sizes.clear()
    few = ThresholdSweep(["AD-CAM, two scales"], images.class_set, stride=3)
    every = ThresholdSweep(["CAM"], images.class_set)
    evaluate(images, SPECS[:3], [every, few], {"": classifier})
    asked = Counter((i % 3 == 0, i % 40 % 3 == 0) for i in range(200))
    batches = {(both, shape): -(-n // BATCH_SIZE) for (both, shape), n in asked.items()}
    assert len(sizes) == sum((3 if both else 1) * n for (both, _), n in batches.items())


def test_masks_are_made_beside_a_network_on_a_gpu(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU that passes for one: the same results, and no mask is left to who evaluates."""
    specs = [
        *SPECS[:2],
        SPECS[-1],
        MethodSpec("rule", "ad_cam", views=ONE, crf="irn", rule="steepest:0.5"),
    ]
    networks = {"": classifier}
    options = {"keep_pictures": True}
    expected = compare_methods(networks, specs, *splits, masks_dir=tmp_path / "a", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: "cpu:0")
    monkeypatch.setattr(loop, "_run_whole", loop._run_split)

    def refuse(self: MappedImage, choice: MaskChoice, mask_values: Sequence[int]) -> Any:
        raise AssertionError(f"{choice} is not there")

    monkeypatch.setattr(MappedImage, "_compute_mask", refuse)
    found = compare_methods(networks, specs, *splits, masks_dir=tmp_path / "b", **options)  # type: ignore[arg-type]
    assert describe(found, splits[1]) == describe(expected, splits[1])
    assert read_masks(tmp_path / "a") == read_masks(tmp_path / "b")
    assert found.times["report"].seconds["masks"] > 0


def test_masks_of_a_batch_share_a_crf(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, together = splits[1], []
    mapper = build_mapper([SPECS[0], SPECS[-1]], classifier, images)
    choice = MaskChoice("AD-CAM + CRF", BackgroundRule("constant", 0.4), "toco")
    names = {"CAM", choice.name}
    asked = [
        Wanted(i, images[i], names if i else {"CAM"}, choices={choice} if i else frozenset())
        for i in range(5)
    ]

    def count(probs: list[torch.Tensor], imgs: list[Any], *, crf: str) -> list[torch.Tensor]:
        together.append(len(probs))
        return refine_batch(probs, imgs, crf=crf)

    monkeypatch.setattr(mask_maker, "refine_batch", count)
    monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: "cpu:0")
    found = mapper.map_batch(asked, batch_size=8)
    assert together == [4] and not found[0]._kept
    values = images.class_set.mask_values
    for image in found[1:]:
        alone = MappedImage(image.index, image.sample, image.maps).make_mask(choice, values)
        np.testing.assert_array_equal(image._kept[choice].mask, alone.mask)
        np.testing.assert_array_equal(image.make_mask(choice, values).mask, alone.mask)


def test_workers_get_ready_while_networks_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(executor, "load_ahead", started.append)
    monkeypatch.setattr(executor, "_wake", started.append)
    for device, workers, num_images in (
        ("cuda:0", 3, 41),
        ("cuda:0", 3, 40),
        ("cpu", 3, 41),
        ("cpu", 0, 41),
    ):
        monkeypatch.setattr(loop, "resolve_device", lambda _, device=device: torch.device(device))
        loop.start_loop_early(LoopOptions(workers=workers), num_images)
    here = "adcam.evaluation.loop"
    assert started == [[here], "cuda:0", ["adcam.labeling.labeler", here]]


def test_a_batch_that_memory_is_too_short_for_goes_in_halves(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, sizes = splits[1], []
    mapper = build_mapper(SPECS[:2], classifier, images)
    names = {spec.name for spec in SPECS[:2]}
    asked = [Wanted(i, images[i], names) for i in range(5)]
    expected = [mapper.map_batch([one])[0] for one in asked]
    token_maps, most, error = TokenCAM.token_maps, 1, torch.OutOfMemoryError("no room")

    def little_memory(self: TokenCAM, inputs: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > most:
            raise error
        return token_maps(self, inputs, **options)

    monkeypatch.setattr(TokenCAM, "token_maps", little_memory)
    found = mapper.map_batch(asked, batch_size=4)
    assert sizes == [4, 2, 1, 1, 2, 1, 1, 1]
    for image, alone in zip(found, expected, strict=True):
        assert image.index == alone.index
        for name in names:
            np.testing.assert_array_equal(image.maps[name].score_maps, alone.maps[name].score_maps)
    most = 0  # not even one image fits
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        mapper.map_batch(asked, batch_size=4)
    error = RuntimeError("expected scalar type Float but found Half")
    sizes.clear()
    with pytest.raises(RuntimeError, match="expected scalar type"):
        mapper.map_batch(asked, batch_size=4)
    assert sizes == [4]


def test_a_batch_that_fails_gets_the_memory_of_all_graphs(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mapper = build_mapper([SPECS[0], MethodSpec("two", "cam", views=TWO)], classifier, splits[1])
    caches = [
        GraphCache(group.forward, capture=lambda function, *_: function, first=0)
        for group in mapper._groups
    ]
    mapper._groups = [
        replace(group, forward=cache) for group, cache in zip(mapper._groups, caches, strict=True)
    ]
    image = Wanted(0, splits[1][0], {SPECS[0].name, "two"})

    def run() -> list[MappedImage]:
        (mapped,) = mapper.map_ahead([[mapper.prepare(image)]], batch_size=1)
        return mapped

    (expected,) = run()
    assert all(cache._graphs for cache in caches)

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    caches[1]._function = fail
    caches[1].free_memory()
    (found,) = run()  # which the plain pass then has
    assert not any(cache._graphs for cache in caches)
    for name, maps in expected.maps.items():
        np.testing.assert_array_equal(found.maps[name].score_maps, maps.score_maps)
    monkeypatch.setattr(MapMaker, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        run()


@pytest.mark.parametrize("top_k", [0, 2])
def test_lanes_give_each_image_what_it_gets_by_itself(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
    top_k: int,
) -> None:
    """With the classes in another order than the network's; each pass sees one image here."""
    images = splits[1]
    known = images.class_set
    turned = replace(known, classes=known.classes[::-1], mask_values=known.mask_values[::-1])
    networks = {"": ClassifierFile(classifier.network, turned)}
    targets = MapTargets(top_k=top_k, map_hw=(20, 30) if top_k else None)
    cpu = torch.device("cpu")
    mapper = ImageMapper(SPECS, networks, known, targets, device=cpu, dtype=torch.float32)
    names = {spec.name for spec in SPECS}
    choices = {
        MaskChoice("TS-CAM", BackgroundRule("constant", 0.3)),
        MaskChoice("AD-CAM + CRF", BackgroundRule("constant", 0.4), "toco"),
    }
    asked = [
        Wanted(i, images[i], names if i % 3 else {"CAM"}, choices=choices if i % 3 else set())
        for i in range(len(images))
    ]
    none = replace(asked[1], sample=replace(images[1], class_ids=()))
    asked[1] = replace(none, choices=frozenset() if top_k else choices)
    expected = [mapper.map_batch([one])[0] for one in asked]
    if not top_k:
        monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: "cpu:0")
    groups = [[mapper.prepare(one) for one in asked[i : i + 4]] for i in range(0, len(asked), 4)]
    found = [one for group in mapper.map_ahead(groups, batch_size=1) for one in group]
    assert [image.index for image in found] == [image.index for image in expected]
    for image, alone in zip(found, expected, strict=True):
        assert image.maps.keys() == alone.maps.keys()
        for name, maps in image.maps.items():
            other = alone.maps[name]
            np.testing.assert_array_equal(maps.score_maps, other.score_maps)
            assert {**vars(maps), "score_maps": 0} == {**vars(other), "score_maps": 0}
        assert set(image._kept) == (set() if top_k else set(asked[image.index].choices))
        for choice, mask in image._kept.items():
            own = alone.make_mask(choice, known.mask_values)
            np.testing.assert_array_equal(mask.mask, own.mask)
            assert {**vars(mask), "mask": 0} == {**vars(own), "mask": 0}


def test_who_feeds_a_gpu_resizes_nothing_sends_a_batch_at_once_and_waits_for_it_once(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work of each thread: the readers', the lanes' and the one that counts."""
    threads: dict[str, list[int]] = defaultdict(list)

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def note(*arguments: Any, **options: Any) -> Any:
            threads[name].append(threading.get_ident())
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, note)

    watch(Resizer, "__call__")
    watch(MapMaker, "forward")
    watch(MapMaker, "compute_on_device")
    watch(lanes, "send_bytes")
    watch(lanes, "wait_for")
    watch(mask_maker, "send_bytes")
    watch(MaskMaker, "label_on_device")
    monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: "cpu:0")
    monkeypatch.setattr(loop, "_run_whole", partial(loop._run_split, batch_size=4))
    images = splits[1]
    rule = BackgroundRule("constant", 0.4)
    scores = MaskScores([MaskChoice("CAM", rule), MaskChoice("TS-CAM", rule)], images.class_set)
    evaluate(images, SPECS[:3], [scores], {"": classifier})
    here = threading.get_ident()
    passes = len(threads["forward"])
    assert passes == 3 and len(threads["compute_on_device"]) == 2 * passes
    assert len(threads["send_bytes"]) == len(threads["wait_for"]) // 2 == passes
    # For a batch once; a mark that is none is no wait.
    assert threads["wait_for"].count(here) == passes and here not in threads["__call__"]
    assert len(threads["__call__"]) == len(images)
    lanes_seen = [{*threads[name]} for name in ("send_bytes", "forward", "label_on_device")]
    assert [len(of_lane) for of_lane in lanes_seen] == [1, 1, 1]
    assert len(set.union(*lanes_seen, {here})) == 4
    assert {*threads["__call__"]}.isdisjoint(set.union(*lanes_seen))


def test_the_next_batch_is_seen_while_the_masks_of_one_are_made(
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, seen, waited = splits[1], [threading.Event() for _ in range(4)], []
    mapper = build_mapper(SPECS[:1], classifier, images)
    choice = MaskChoice("CAM", BackgroundRule("constant", 0.4))
    forward, label = mapper._groups[0].forward, MaskMaker.label_on_device
    passes = iter(seen)

    def see(*batches: torch.Tensor) -> Any:
        next(passes).set()
        return forward(*batches)

    def wait(self: MaskMaker, *arguments: Any) -> Any:
        following = seen[min(len(waited) + 1, len(seen) - 1)]
        waited.append(following.wait(10))
        return label(self, *arguments)

    mapper._groups = [replace(mapper._groups[0], forward=see)]
    monkeypatch.setattr(MaskMaker, "label_on_device", wait)
    monkeypatch.setattr(mapping, "find_mask_device", lambda device, crf: "cpu:0")
    asked = [Wanted(i, images[i], {"CAM"}, choices={choice}) for i in range(4)]
    groups = [[mapper.prepare(one)] for one in asked]
    groups.append([mapper.prepare(Wanted(8, images[8], set()))])  # nothing is computed of it
    found = [[one.index for one in group] for group in mapper.map_ahead(groups, batch_size=1)]
    assert found == [[0], [1], [2], [3], [8]] and waited == [True] * 4


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [0, 2])
def test_lanes_of_a_gpu_give_what_its_plain_steps_give(
    gpu: torch.device,
    splits: tuple[ImageDataset, ImageDataset],
    classifier: ClassifierFile,
    full_float32: None,
    top_k: int,
) -> None:
    """Three batches of one size: called, captured as a graph, and replayed."""
    images = splits[1]
    specs = [*SPECS[:2], MethodSpec("two scales", "ts_cam", views=TWO)]
    targets = MapTargets(top_k=top_k)
    mapper = ImageMapper(
        specs, {"": classifier}, images.class_set, targets, device=gpu, dtype=torch.float32
    )
    choices = {MaskChoice("CAM", BackgroundRule("constant", 0.4))}
    names = {spec.name for spec in specs}
    asked = [Wanted(i, images[i], names, choices=choices) for i in range(9)]
    groups = [[mapper.prepare(one) for one in asked[i : i + 3]] for i in range(0, 9, 3)]
    found = [one for group in mapper.map_ahead(groups, batch_size=3) for one in group]
    for image, one in zip(found, asked, strict=True):
        (alone,) = mapper.map_batch([one])
        assert image.index == alone.index and image.maps.keys() == alone.maps.keys()
        for name, maps in image.maps.items():
            assert maps.class_ids == alone.maps[name].class_ids
            assert maps.top_predictions == alone.maps[name].top_predictions
            np.testing.assert_allclose(maps.score_maps, alone.maps[name].score_maps, atol=1e-4)
        masks = [x.make_mask(*choices, images.class_set.mask_values).mask for x in (image, alone)]
        assert (masks[0] == masks[1]).mean() > 0.99


def test_memory_does_not_grow_with_the_pictures_that_are_kept(
    splits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    class_set = splits[0].class_set
    kept = Pictures(["CAM"], [], class_set, num_images=300, folder=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 200, 200), dtype=np.uint8)
    tracemalloc.start()
    try:
        for index in range(300):
            part = Pictures(["CAM"], [], class_set, num_images=300)
            maps = {"CAM": _Packed.pack(pixels)}  # 40 kB each, 12 MB in all
            part._images = [SmallImage(index, f"{index}", (0,), None, None, b"", None, maps, {})]
            kept.merge(part)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000
    assert all(np.array_equal(image.maps["CAM"], pixels) for image in kept.compute())
    assert list(tmp_path.iterdir()) == []
