"""The steps on a GPU: planned, in lanes, replayed; all but the GPU itself also without one."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import DeadlyResizer, OpCounter
from PIL import Image

from adcam.cams import activation
from adcam.data.folder import load_folder
from adcam.data.png import read_mask
from adcam.labeling import inputs as inputs_module
from adcam.labeling import lanes, map_maker, transfer
from adcam.labeling import run as run_module
from adcam.labeling.box_job import BoxJob, BoxOptions
from adcam.labeling.device_steps import DeviceSteps
from adcam.labeling.generate import generate
from adcam.labeling.graphs import GraphCache
from adcam.labeling.inputs import plan_groups
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.lanes import Batch, Lane, Lanes, cache_graphs, mark_work
from adcam.labeling.map_maker import MapMaker
from adcam.labeling.mask_job import MaskJob
from adcam.labeling.mask_maker import MaskMaker
from adcam.labeling.run import Run
from adcam.labeling.steps import (
    Decoded,
    Failed,
    Made,
    Mapped,
    Task,
    decode,
    find_input_sizes,
    finish,
    infer_window,
    make,
)
from adcam.labeling.trace import measure_union, record_trace
from adcam.labeling.transfer import find_stream, send_bytes
from adcam.masks.background import parse_rule
from adcam.masks.steepest import find_steepest_level, find_steepest_levels
from adcam.models.preprocess import resize_img
from adcam.models.token_cam import TokenCAM
from adcam.settings import TestViews

SIZES = [(40, 64), (64, 40), (40, 64), (41, 64), (40, 64), (64, 40), (40, 64)]
LEFT_LOCK = '{"process": 1, "host": "gone"}'  # as a run that was killed leaves it


def make_photos(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Task]:
    folder.mkdir()
    tasks = []
    for i, (height, width) in enumerate(sizes):
        coarse = np.random.default_rng(i).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        path = folder / f"{i:02d}.png"
        img = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        img.save(path)
        tasks.append(Task(i, path.stem, path, (0, 2) if i % 2 else (1,)))
    return tasks


def load(path: Path, device: str = "cpu", **options: Any) -> PseudoLabeler:
    views = TestViews((48, 64), flip=True)
    labeler = PseudoLabeler.from_checkpoint(path, device=device, views=views, **options)
    # A random network attends to everything alike: its maps would be constant but for rounding.
    with torch.no_grad():
        for name, weight in labeler.network.named_parameters():
            if name.endswith("attn.qkv.weight"):
                weight.mul_(30)
    return labeler


def load_for_batches(path: Path, **options: Any) -> PseudoLabeler:
    """A labeler that makes masks in a batch, as on a GPU: by another name of the CPU."""
    labeler = load(path, **options)
    labeler.mask_maker = replace(labeler.mask_maker, crf_device="cpu:0")
    return labeler


def read(tasks: Sequence[Task], labeler: PseudoLabeler) -> list[Decoded | Failed]:
    resizer, most = labeler.map_maker.resizer, labeler.options.max_pixels
    return [decode(task, resizer=resizer, max_pixels=most) for task in tasks]


def mask_job(labeler: PseudoLabeler, out: Path, maps_dtype: str | None = None) -> MaskJob:
    thresholds = labeler.label_thresholds
    return MaskJob(labeler.mask_maker, out, labeler.class_set, maps_dtype, thresholds)


def test_pixels_sent_to_another_process_become_the_inputs_of_this_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labeler = load(tiny_checkpoint)
    tasks = make_photos(tmp_path / "photos", SIZES[:1])
    (image,) = read(tasks, labeler)
    sent = pickle.loads(pickle.dumps(image))
    assert isinstance(image, Decoded) and isinstance(sent, Decoded)
    assert torch.equal(torch.from_numpy(sent.img), torch.from_numpy(image.img))
    for x, y in zip(image.inputs, sent.inputs, strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype == torch.uint8
    maker = labeler.map_maker
    one, other = maker.run([image.img]), maker.run_inputs([sent.inputs])
    for a, b in zip(one.token_maps, other.token_maps, strict=True):
        assert torch.equal(a.cam, b.cam)


def test_batches_are_planned_of_images_of_one_size_unread(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_photos(tmp_path / "photos")
    labeler = load(tiny_checkpoint)
    find = partial(find_input_sizes, resizer=labeler.map_maker.resizer, max_pixels=1 << 22)

    def plan(tasks: Sequence[Task], find: Any = find, batch_size: int = 2) -> list[list[int]]:
        done = attrgetter("is_done")
        groups = plan_groups(tasks, find, batch_size=batch_size, is_done=done)
        return [[task.index for task in group] for group in groups]

    groups = plan(tasks)
    assert groups == [[0, 2], [3, 4], [1, 5], [6]]  # those that are not full come last
    inputs = {image.task.index: image.inputs for image in read(tasks, labeler)}  # type: ignore
    for group in groups:
        assert len({tuple(x.shape for x in inputs[i]) for i in group}) == 1
    # Batches of a resumed run are those of the first; what is done completely is left out.
    done = [replace(task, is_done=task.index not in (2, 5)) for task in tasks]
    assert plan(done) == [[0, 2], [1, 5]]
    # Unknown sizes: larger groups, in which equal ones are looked for when they are read.
    tasks[1] = replace(tasks[1], img_path=tmp_path / "missing.png")
    assert [1] in plan(tasks)
    assert plan(tasks, find=lambda task: None) == [[0, 1, 2, 3, 4, 5, 6]]
    assert plan(tasks, batch_size=1) == [[i] for i in range(7)]
    monkeypatch.setattr(inputs_module, "_WIDE_WINDOW", 2)
    assert {index for group in plan(tasks)[:3] for index in group} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("crf", "options"),
    [
        ("none", {"rule": "0.4"}),
        ("none", {}),
        ("toco", {"rule": "power:3"}),
        ("none", {"two_threshold": (0.3, 0.6)}),
    ],
)
def test_lanes_give_what_the_steps_give_one_image_at_a_time(
    tiny_checkpoint: Path, tmp_path: Path, crf: str, options: dict[str, Any]
) -> None:
    labeler = load(tiny_checkpoint, crf=crf, **options)
    tasks = make_photos(tmp_path / "photos")
    tasks[4] = replace(tasks[4], is_done=True)
    tasks.append(Task(7, "none", tmp_path / "photos" / "00.png", ()))
    tasks.append(Task(8, "missing", tmp_path / "missing.png", (0,)))
    decoded = read(tasks, labeler)
    job = mask_job(labeler, tmp_path, "uint8")
    mapped = infer_window(decoded, labeler, batch_size=1)
    expected = {image.task.index: make(image, job) for image in mapped}
    # A name of the CPU by which masks are made in a batch, as on a GPU.
    labeler.mask_maker = replace(labeler.mask_maker, crf_device="cpu:0")
    job = mask_job(labeler, tmp_path, "uint8")
    steps = DeviceSteps(labeler, job, batch_size=2)
    found = [image for batch in steps.run([decoded[:5], decoded[5:]]) for image in batch]
    assert sorted(image.task.index for image in found) == [0, 1, 2, 3, 5, 6, 7, 8]
    for image in found:
        other = expected[image.task.index]
        if isinstance(image, Failed):
            assert isinstance(other, Failed) and "no such file" in image.error
            continue
        if isinstance(image, Mapped):  # two thresholds are a matter of the CPU
            assert options.keys() == {"two_threshold"}
            image = make(image, job)
        assert isinstance(image, Made) and isinstance(other, Made)
        np.testing.assert_array_equal(image.result.mask, other.result.mask)
        assert {**vars(image.result), "mask": None} == {**vars(other.result), "mask": None}
        np.testing.assert_array_equal(image.image.scores, other.image.scores)
        # Products of a batch may round otherwise than those of one image.
        found_maps, expected_maps = image.image.maps.score_maps, other.image.maps.score_maps
        np.testing.assert_allclose(found_maps, expected_maps, atol=1e-6)
        assert set(image.seconds) == set(other.seconds) == {"decode", "network", "refine", "crf"}


@pytest.mark.parametrize("rule", ["wsol", "ts_cam"])
def test_lanes_give_the_boxes_that_the_steps_give_one_image_at_a_time(
    tiny_checkpoint: Path, tmp_path: Path, rule: str
) -> None:
    """Boxes are found on the CPU, by processes that get the maps."""
    labeler = load_for_batches(tiny_checkpoint)
    tasks = make_photos(tmp_path / "photos")
    tasks[4] = replace(tasks[4], is_done=True)
    tasks[5] = replace(tasks[5], class_ids=None)
    tasks.append(Task(7, "none", tmp_path / "photos" / "00.png", ()))
    tasks.append(Task(8, "missing", tmp_path / "missing.png", (0,)))
    decoded = read(tasks, labeler)
    job = BoxJob(BoxOptions(0.4, rule), labeler.class_set, labeler.label_thresholds)
    mapped = infer_window(decoded, labeler, batch_size=1)
    expected = {image.task.index: finish(image, job) for image in mapped}
    steps = DeviceSteps(labeler, job, batch_size=2)
    found = [image for batch in steps.run([decoded[:5], decoded[5:]]) for image in batch]
    assert sorted(image.task.index for image in found) == [0, 1, 2, 3, 5, 6, 7, 8]
    for image in found:
        assert isinstance(image, Mapped | Failed)
        finished = finish(pickle.loads(pickle.dumps(image)), job)
        assert finished.entry == expected[image.task.index].entry
        assert set(finished.seconds) == set(expected[image.task.index].seconds)
    assert sum(len(item.entry.get("boxes", ())) for item in expected.values()) >= 8


@pytest.mark.parametrize("rule", ["steepest:0.58", "0.4", "power:3"])
def test_nothing_between_pixels_and_masks_waits_for_the_device(
    tiny_checkpoint: Path, tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels given and without a CRF. For AD-CAM: tests/ops/test_device_lanes.py."""
    labeler = load_for_batches(tiny_checkpoint, method="cam", rule=rule)
    steps = DeviceSteps(labeler, mask_job(labeler, tmp_path), batch_size=4)
    decoded: Any = read(make_photos(tmp_path / "photos", SIZES[:1] * 4), labeler)
    list(steps.run([decoded]))
    item: Any = steps.plan(decoded)
    for module in (map_maker, activation):  # it looks at nothing that is on a GPU
        monkeypatch.setattr(module, "check_class_ids", lambda *_, **__: None)
    seen: list[str] = []

    def watch(name: str) -> None:
        """Notice what is no operation of a tensor on the CPU."""
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, **k: (seen.append(name), real(*a, **k))[1]
        )

    watch("tolist")
    watch("cpu")
    for _, step, kind in steps.lanes.steps:
        with OpCounter() as counter:  # which counts the operations of its own thread
            item = step(item) if isinstance(item, kind) else item
        assert bool(counter.launched) == (kind.__name__ != "_Seen")
        assert seen == counter.waited == []
    assert len(steps.describe(steps.lanes.collect(item))) == 4


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_bytes_go_to_a_gpu_from_pinned_memory_and_are_not_waited_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, device = torch.empty, torch.device(kind)
    pinned: list[bool] = []
    sent: list[tuple[torch.Tensor, torch.device, bool]] = []

    def make(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **options)

    def send(x: torch.Tensor, to: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        sent.append((x, to, non_blocking))
        return x

    monkeypatch.setattr(torch, "empty", make)
    monkeypatch.setattr(torch.Tensor, "to", send)
    parts = [torch.tensor(values, dtype=torch.uint8) for values in ([[1], [2]], [3, 4, 5])]
    there = send_bytes(parts, device)
    assert there.tolist() == [1, 2, 3, 4, 5] and pinned == [kind == "cuda"]
    ((host, to, non_blocking),) = sent  # in one piece
    assert host is there and to == device and non_blocking


def test_graphs_are_for_a_gpu_and_networks_of_a_fixed_course(tiny_checkpoint: Path) -> None:
    maker = load(tiny_checkpoint).map_maker
    assert cache_graphs(maker) == maker.forward
    maker.device = torch.device("cuda")
    cache = cache_graphs(maker)
    assert isinstance(cache, GraphCache) and cache._function == maker.forward
    maker.network = SimpleNamespace(name="any")  # type: ignore[assignment]
    assert cache_graphs(maker) == maker.forward


def test_maps_that_nobody_reads_stay_on_the_device(tiny_checkpoint: Path, tmp_path: Path) -> None:
    labeler = load_for_batches(tiny_checkpoint)
    decoded = read(make_photos(tmp_path / "photos"), labeler)
    for maps_dtype, size in ((None, 0), ("uint8", 40)):
        job = mask_job(labeler, tmp_path, maps_dtype)
        steps = DeviceSteps(labeler, job, batch_size=4)
        (image, *_), *_ = steps.run([decoded])
        assert isinstance(image, Made) and image.image.maps.score_maps.shape[1] == size
        assert image.image.img.size == 0 and image.image.maps.class_ids == (1,)


def test_only_the_maps_that_are_shown_leave_the_device(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labeler = load_for_batches(tiny_checkpoint)
    decoded = read(make_photos(tmp_path / "photos"), labeler)
    job = replace(mask_job(labeler, tmp_path), shown_every=3)
    found = [x for batch in DeviceSteps(labeler, job, batch_size=4).run([decoded]) for x in batch]
    sizes = {x.task.index: x.image.maps.score_maps.size for x in found if isinstance(x, Made)}
    assert {index for index, size in sizes.items() if size} == {0, 3, 6}


def test_what_fails_as_a_batch_goes_by_halves_and_nonsense_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = load_for_batches(tiny_checkpoint)
    job = mask_job(labeler, tmp_path)
    decoded = read(make_photos(tmp_path / "photos"), labeler)
    forward, sizes = MapMaker.forward, []

    def little_memory(self: MapMaker, *batches: torch.Tensor) -> Any:
        sizes.append(len(batches[0]))
        if len(batches[0]) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(self, *batches)

    with monkeypatch.context() as patch:
        patch.setattr(MapMaker, "forward", little_memory)
        steps = DeviceSteps(labeler, job, batch_size=4)
        found = [image for batch in steps.run([decoded]) for image in batch]
    assert len(found) == 7 and all(isinstance(image, Made) for image in found)
    assert {2, 4} <= set(sizes)
    compute = MapMaker.compute_on_device

    def spoil(self: MapMaker, *arguments: Any, **options: Any) -> list[torch.Tensor]:
        maps = compute(self, *arguments, **options)
        return [maps[0] * torch.nan, *maps[1:]]

    with monkeypatch.context() as patch:
        patch.setattr(MapMaker, "compute_on_device", spoil)
        steps = DeviceSteps(labeler, job, batch_size=4)
        (first, *others), *_ = steps.run([decoded])
    assert isinstance(first, Failed) and "NaN or infinite" in first.error
    assert all(isinstance(image, Made) for image in others)

    def mistake(self: MapMaker, *batches: torch.Tensor) -> Any:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(MapMaker, "forward", mistake)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        list(DeviceSteps(labeler, job, batch_size=4).run([decoded]))


def test_what_fails_in_another_lane_waits_for_the_network(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes at once would meet each other's hooks, through which attention is read."""
    labeler = load_for_batches(tiny_checkpoint)
    job = mask_job(labeler, tmp_path)
    decoded = read(make_photos(tmp_path / "photos"), labeler)
    expected = {x.task.index: make(x, job) for x in infer_window(decoded, labeler, batch_size=1)}
    run, label = TokenCAM.token_maps_of_sizes, MaskMaker.label_on_device
    running: list[int] = []
    together: list[int] = []

    def slow_run(self: TokenCAM, inputs: Sequence[torch.Tensor], **options: Any) -> Any:
        running.append(1)
        together.append(len(running))
        time.sleep(0.05)
        try:
            return run(self, inputs, **options)
        finally:
            running.pop()

    def little_memory(self: MaskMaker, maps: Sequence[torch.Tensor], *rest: Any) -> Any:
        if len(maps) > 1:
            raise torch.OutOfMemoryError("no room")
        return label(self, maps, *rest)

    monkeypatch.setattr(TokenCAM, "token_maps_of_sizes", slow_run)
    monkeypatch.setattr(MaskMaker, "label_on_device", little_memory)
    steps = DeviceSteps(labeler, job, batch_size=2)
    found = [image for batch in steps.run([decoded]) for image in batch]
    assert len(found) == 7 and len(together) > 4 and max(together) == 1
    for image in found:
        other = expected[image.task.index]
        assert isinstance(image, Made) and isinstance(other, Made)
        np.testing.assert_array_equal(image.result.mask, other.result.mask)


def test_while_scores_come_back_the_network_sees_the_next_batch(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its graph, whose result is always in the same place, overwrites nothing in use."""
    labeler = load_for_batches(tiny_checkpoint, method="cam", rule="0.4")
    monkeypatch.setattr(labeler, "predict_class_ids", lambda probs: (int(probs.argmax()),))
    tasks = [replace(x, class_ids=None) for x in make_photos(tmp_path / "photos", SIZES[:1] * 6)]
    job, decoded = mask_job(labeler, tmp_path, "uint8"), read(tasks, labeler)
    expected = {x.task.index: make(x, job) for x in infer_window(decoded, labeler, batch_size=2)}
    seen, changed = [0], threading.Condition()

    def capture(function: Any, *batches: torch.Tensor) -> Any:
        kept = function(*batches)

        def replay(*batches: torch.Tensor) -> Any:
            with torch.inference_mode(), changed:
                for mine, new in zip(kept, function(*batches), strict=True):
                    mine.logits.copy_(new.logits)
                    mine.cam.copy_(new.cam)
                seen[0] += 1
                changed.notify()
            return kept

        return replay

    waits: list[bool] = []

    def wait(mark: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            with changed:
                most = min(len(waits) + 2, 3)
                waits.append(changed.wait_for(lambda: seen[0] >= most, timeout=5))

    monkeypatch.setattr(lanes, "wait_for", wait)
    steps = DeviceSteps(labeler, job, batch_size=2)
    steps._forward = GraphCache(labeler.map_maker.forward, capture=capture, first=0)
    found = [image for batch in steps.run([decoded]) for image in batch]
    assert waits == [True] * 3 and len(found) == 6
    for image in found:
        other = expected[image.task.index]
        assert isinstance(image, Made) and isinstance(other, Made)
        assert image.image.maps.class_ids == other.image.maps.class_ids
        found_maps, expected_maps = image.image.maps.score_maps, other.image.maps.score_maps
        np.testing.assert_allclose(found_maps, expected_maps, atol=1e-6)
        np.testing.assert_array_equal(image.result.mask, other.result.mask)


def test_lanes_do_one_thing_at_a_time_each_and_all_at_once() -> None:
    pair = [Lane(torch.device("cpu"), str(i)) for i in range(2)]
    meet = threading.Barrier(2, timeout=10)
    futures = [lane.submit(lambda item: (meet.wait(), item)[1], i) for i, lane in enumerate(pair)]
    assert [future.result() for future in futures] == [0, 1]
    assert mark_work(torch.device("cpu")) is None
    for lane in pair:
        lane.close()


def test_a_lane_begins_after_what_came_before_it_and_ends_when_the_gpu_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Stream:
        def wait_stream(self, other: str) -> None:
            log.append(f"follows {other}")

        def synchronize(self) -> None:
            log.append("is waited for")

    monkeypatch.setattr(lanes, "find_stream", lambda device, name: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's stream")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    lane = Lane(torch.device("cuda"), "network")
    lane.submit(log.append, "works").result()
    lane.close()
    assert log == ["follows the caller's stream", "works", "is waited for"]


def test_what_a_failed_step_has_told_the_gpu_is_done_before_its_batch_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[Any] = []
    monkeypatch.setattr(lanes, "mark_work", lambda device: "the step")
    monkeypatch.setattr(lanes, "wait_for", log.append)
    of_all = Lanes(torch.device("cpu"), lambda *_: log.append("once more"))

    def fail(batch: Batch) -> Any:
        raise torch.OutOfMemoryError("no room")

    of_all._try(fail, object.__new__(Batch))
    assert log == ["the step", "once more"]


def test_each_run_fills_the_streams_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: made.append((index, len(made))) or made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    transfer._make_stream.cache_clear()
    try:
        for device in (torch.device("cuda"), torch.device("cuda", 1), torch.device("cuda", 0)):
            for name in ("upload", "network", "upload"):
                find_stream(device, name)
    finally:
        transfer._make_stream.cache_clear()
    assert made == [(1, 0), (1, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_and_stops_no_image_is_lost_or_doubled_and_nothing_stays(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Memory that is short here and there, in every lane; who calls may stop in the middle."""
    labeler = load_for_batches(tiny_checkpoint)
    job = mask_job(labeler, tmp_path)
    tasks = make_photos(tmp_path / "photos")
    if seed % 3 == 0:
        tasks = [replace(task, class_ids=None) for task in tasks]
    decoded = read(tasks, labeler)
    expected = {x.task.index: make(x, job) for x in infer_window(decoded, labeler, batch_size=1)}
    lock, alive = threading.Lock(), []

    def be_short(owner: Any, name: str) -> None:
        real, rng = getattr(owner, name), np.random.default_rng([seed, len(name)])

        def call(*arguments: Any, **options: Any) -> Any:
            with lock:
                number = rng.random()
            if number < 0.1:
                raise (MemoryError if number < 0.05 else torch.OutOfMemoryError)("no room")
            result = real(*arguments, **options)
            if name == "_upload":
                alive.append(weakref.ref(result))
            return result

        monkeypatch.setattr(owner, name, call)

    be_short(Lanes, "_upload")
    be_short(TokenCAM, "token_maps_of_sizes")
    be_short(MapMaker, "compute_on_device")
    be_short(MaskMaker, "label_on_device")
    steps = DeviceSteps(labeler, job, batch_size=3)
    stop, found, before = (seed % 2) * 3, [], set(threading.enumerate())
    run = steps.run([decoded] * (1 if stop == 0 else 20))
    for number, batch in enumerate(run, 1):
        found += batch
        if number == stop:
            run.close()
            break
    del run
    assert set(threading.enumerate()) <= before
    assert alive and all(ref() is None for ref in alive)
    assert stop or sorted(x.task.index for x in found) == [*range(len(SIZES))]
    for image in found:
        if isinstance(image, Failed):
            assert image.error == "no room"
            continue
        other = expected[image.task.index]
        assert isinstance(image, Made) and isinstance(other, Made)
        np.testing.assert_array_equal(image.result.mask, other.result.mask)
        assert image.image.maps.class_ids == other.image.maps.class_ids


def test_shapes_that_come_back_are_captured_once_and_the_oldest_let_go() -> None:
    captured: list[int] = []

    def capture(function: Any, x: torch.Tensor) -> Any:
        captured.append(len(x))
        return lambda y: function(y) + 100

    cache = GraphCache(lambda x: x.sum(), capture=capture, first=2, most=2)
    results = [int(cache(torch.ones(n))) for n in (3, 3, 3, 3, 5, 5, 5, 7, 7, 7, 5, 3)]
    assert results == [3, 3, 103, 103, 5, 5, 105, 7, 7, 107, 105, 103]
    assert captured == [3, 5, 7, 3]

    held: list[weakref.ref[torch.Tensor]] = []

    def refuse(function: Any, x: torch.Tensor) -> Any:
        half_done = torch.zeros(3)
        held.append(weakref.ref(half_done))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def add(x: torch.Tensor) -> torch.Tensor:
        assert held[0]() is None  # what the capture had in memory is free
        return x.sum()

    cache = GraphCache(add, capture=refuse, first=0)
    with pytest.warns(UserWarning, match="graphs are off.*not permitted when stream is capturing$"):
        assert int(cache(torch.ones(3))) == 3
    assert int(cache(torch.ones(3))) == 3 and len(held) == 1  # without another try


@pytest.mark.parametrize("rule", ["0.5", "power:1"])
def test_background_wins_over_equal_scores_and_the_first_class_over_the_second(rule: str) -> None:
    scores = torch.tensor([[[0.25, 0.5, 0.75, 0.5]], [[0.5, 0.25, 0.75, 0.875]]])
    maker = MaskMaker(parse_rule(rule), None, "none", "auto", (5, 7, 9))
    (mask,), _ = maker.label_on_device([scores], [(0, 2)], [])
    assert mask.tolist() == [[0, 0, 5, 9]]


@pytest.mark.parametrize("follows", [None, "CUDA error: previous error during capture"])
def test_graphs_give_their_memory_back_where_it_is_short(follows: str | None) -> None:
    """One lack of memory is not the end of all graphs; the plain call gets the memory.

    The error may be that of ending the capture, which ``follows`` a lack of memory in it.
    """
    held: list[weakref.ref[torch.Tensor]] = []
    room = 2

    def count() -> int:
        return sum(ref() is not None for ref in held)

    def capture(function: Any, x: torch.Tensor) -> Any:
        if count() == room:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            finally:
                if follows:
                    raise RuntimeError(follows)
        memory = torch.zeros(3)
        held.append(weakref.ref(memory))
        return lambda y: function(y) + 100 + memory[0]

    def add(x: torch.Tensor) -> torch.Tensor:
        held_by_graphs.append(count())
        return x.sum()

    held_by_graphs: list[int] = []
    cache = GraphCache(add, capture=capture, first=1, most=8)
    results = [int(cache(torch.ones(n))) for n in (3, 3, 5, 5, 9, 9, 3, 3)]
    assert results == [3, 103, 5, 105, 9, 9, 3, 103]
    assert held_by_graphs == [0, 1, 1, 2, 2, 0, 0, 1]
    cache.free_memory()
    assert count() == 0 and not cache._is_off
    assert [int(cache(torch.ones(3))) for _ in range(3)] == [3, 103, 103]
    room = 0
    cache.free_memory()
    with pytest.warns(UserWarning, match=f"graphs are off.*{follows or 'out of memory'}"):
        assert [int(cache(torch.ones(3))) for _ in range(20)] == [3] * 20
    assert cache._is_off


def test_a_batch_that_fails_for_lack_of_memory_gets_that_of_the_graphs(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = load(tiny_checkpoint)
    job = mask_job(labeler, tmp_path)
    decoded = read(make_photos(tmp_path / "photos", SIZES[:1] * 4), labeler)
    steps = DeviceSteps(labeler, job, batch_size=4)
    steps._forward = cache = GraphCache(
        labeler.map_maker.forward, capture=lambda function, *_: function, first=0
    )
    list(steps.run([decoded]))
    assert len(cache._graphs) == 1
    compute, error, held = MapMaker.compute_on_device, torch.OutOfMemoryError("no room"), []

    def little_memory(self: MapMaker, passes: Any, class_ids: Any, *rest: Any, **more: Any) -> Any:
        held.append(len(cache._graphs))
        if len(class_ids) == 4:
            raise error
        return compute(self, passes, class_ids, *rest, **more)

    monkeypatch.setattr(MapMaker, "compute_on_device", little_memory)
    assert len([image for batch in steps.run([decoded]) for image in batch]) == 4
    assert held == [1, 0, 0]


def test_steepest_levels_of_many_maps_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((6, 1, 5, 7), dtype=np.float32)) ** 2
    peaks = torch.nn.functional.interpolate(coarse, (190, 250), mode="bicubic")[:, 0].clamp(0, 1)
    peaks[5] = 0.3  # constant
    groups = [peaks, peaks[:2, :, :96].contiguous(), peaks[1:3, 30:170], peaks[3:4, :40, :30]]
    for num_classes in ([1, 1, 1, 1], [3, 1, 2, 4]):
        found = find_steepest_levels(groups, expected=0.58, num_classes=num_classes)
        each = [
            find_steepest_level(peak, expected=0.58, num_classes=num)
            for group, num in zip(groups, num_classes, strict=True)
            for peak in group.numpy()
        ]
        assert found.dtype == torch.float64 and found.tolist() == each
    assert len(set(each)) > 2


def test_a_trace_shows_the_lanes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert measure_union([(5, 7), (0, 2), (1, 4), (6, 6)]) == 6
    labeler = load(tiny_checkpoint)
    decoded = read(make_photos(tmp_path / "photos", SIZES[:2]), labeler)
    said: list[str] = []
    with record_trace(tmp_path / "trace.json.gz", said.append) as recorded:
        list(DeviceSteps(labeler, mask_job(labeler, tmp_path), batch_size=2).run([decoded]))
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"upload", "network", "masks", "aten::softmax"} & names >= {"network", "masks"}
    assert said == [
        f"The trace {tmp_path / 'trace.json.gz'} can be looked at with https://ui.perfetto.dev"
    ]
    assert recorded.gpu_busy is None
    with record_trace(None) as recorded:
        pass
    assert recorded.gpu_busy is None


def test_a_trace_tells_how_busy_the_gpu_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Event(NamedTuple):
        start: int
        duration: int
        where: str

        def start_ns(self) -> int:
            return self.start

        def duration_ns(self) -> int:
            return self.duration

        def device_type(self) -> SimpleNamespace:
            return SimpleNamespace(name=self.where)

    # The GPU works from 10 to 20 and from 40 to 50, not in the order of its events.
    events = [
        Event(40, 10, "CUDA"),
        Event(0, 99, "CPU"),
        Event(10, 5, "CUDA"),
        Event(12, 8, "CUDA"),
    ]
    results = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))

    @contextmanager
    def profile(**options: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            profiler=results, export_chrome_trace=lambda path: Path(path).write_text("{}")
        )

    monkeypatch.setattr("torch.profiler.profile", profile)
    said: list[str] = []
    with record_trace(tmp_path / "trace.json", said.append) as recorded:
        pass
    assert recorded.gpu_busy == 0.5
    assert said[0] == "GPU busy for 0.00 s, 50% of the time from its first work"


def test_pixels_are_resized_as_torchvision_does() -> None:
    from torchvision.transforms.v2 import functional as F

    img = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    for hw in ((48, 64), (96, 128), (75, 64)):
        pixels = torch.from_numpy(img).permute(2, 0, 1)
        cubic = F.InterpolationMode.BICUBIC
        expected = F.resize(pixels, list(hw), interpolation=cubic, antialias=True)
        assert torch.equal(resize_img(img, hw), expected)


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        ("labeling.mask_job", {"timm", "torchvision"}),
        ("labeling.box_job", {"timm", "torchvision"}),
        ("data.folder", {"torch", "scipy"}),
    ],
)
def test_where_images_and_labels_are_read_nothing_slow_is_loaded(
    module: str, slow: set[str]
) -> None:
    code = f"import sys, adcam.{module}; print({slow} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_rest_of_a_run_makes_the_batches_that_the_whole_made(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int, int]],
) -> None:
    """On a GPU the number of images in a batch changes last bits: it depends on the data alone."""
    make_photos(tmp_path / "photos", [(40, 64), (64, 40), (64, 64)] * 8)
    monkeypatch.setattr(Run, "_on_cpu", False)
    monkeypatch.setattr(run_module, "INLINE_LIMIT", 9)
    labeler = load(tiny_checkpoint, method="cam")
    how: dict[str, Any] = {"labels": "predicted", "batch_size": 4, "progress": False}
    images, out = load_folder(tmp_path / "photos"), tmp_path / "out"
    blank = [1]  # the check before the run
    for workers in (1, 0):
        result = generate(images, labeler, out, workers=workers, overwrite=True, **how)
        assert result.ok == 24 and [images for images, *_ in passes] == blank + [4] * 6
        passes.clear()
    masks = sorted((out / "masks").iterdir())
    before = [path.read_bytes() for path in masks]
    for was_killed in (False, True):
        masks[14].unlink()  # of its size, the fifth image
        passes.clear()
        if was_killed:
            (out / ".adcam-lock").write_text(LEFT_LOCK)
        result = generate(images, labeler, out, workers=1, **how)
        assert (result.ok, result.skipped) == (1, 23)
        assert [images for images, *_ in passes] == [*blank, 4]
        assert [path.read_bytes() for path in masks] == before


def test_an_image_whose_head_killed_a_run_costs_the_next_one_processes_and_no_more(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int, int]],
) -> None:
    make_photos(tmp_path / "photos")
    monkeypatch.setattr(Run, "_on_cpu", False)
    labeler = load(tiny_checkpoint, method="cam")
    resizer = DeadlyResizer(**vars(labeler.map_maker.resizer))
    monkeypatch.setattr(MapMaker, "resizer", resizer)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".adcam-lock").write_text(LEFT_LOCK)
    how: dict[str, Any] = {"labels": "predicted", "batch_size": 4, "progress": False}
    result = generate(load_folder(tmp_path / "photos"), labeler, out, **how)
    assert result.ok == 6 and [failure.img_id for failure in result.failed] == ["03"]
    assert result.failed[0].error.startswith("it cost two worker processes, killed by SIGKILL")
    assert [images for images, *_ in passes] == [1, 4, 2]  # a blank one, then those of each size


def test_rates_are_those_of_the_run(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "photos")
    monkeypatch.setattr(run_module, "INLINE_LIMIT", 0)
    monkeypatch.setattr(Run, "_on_cpu", False)
    labeler = load(tiny_checkpoint)
    result = generate(
        load_folder(tmp_path / "photos"),
        labeler,
        tmp_path / "out",
        labels="predicted",
        workers=2,
        batch_size=2,
        progress=False,
        profile=tmp_path / "trace.json",
    )
    assert result.ok == 7 and 0 < result.first_after < result.seconds["total"]
    assert result.images_per_second > 0 and "images/s" in result.format_times()
    assert (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_graph_gives_what_the_calls_give(
    gpu: torch.device, tiny_checkpoint: Path, dtype: str, atol: float
) -> None:
    maker = load(tiny_checkpoint, "cuda", dtype=dtype).map_maker
    cache = GraphCache(maker.forward, first=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for seed in range(4):
            torch.manual_seed(seed)
            sizes = [(48, 64), (64, 96)]
            batches = [
                torch.randint(0, 256, (3, 3, *hw), dtype=torch.uint8, device="cuda") for hw in sizes
            ]
            expected = [x.cam.clone() for x in maker.forward(*batches)]
            rows = [
                next(iter(x.attn_patch2patch.values())).clone() for x in maker.forward(*batches)
            ]
            for a, b, row in zip(cache(*batches), expected, rows, strict=True):
                torch.testing.assert_close(a.cam, b, rtol=0, atol=atol)
                mine = next(iter(a.attn_patch2patch.values()))
                torch.testing.assert_close(mine, row, rtol=0, atol=atol)
    assert len(cache._graphs) == 1 and not cache._is_off


@pytest.mark.gpu
def test_graphs_are_captured_again_after_their_memory_was_given_back(
    gpu: torch.device, tiny_checkpoint: Path
) -> None:
    maker = load(tiny_checkpoint, "cuda").map_maker
    cache = GraphCache(maker.forward, first=1)
    batch = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8, device="cuda")
    (expected,) = (x.cam.clone() for x in maker.forward(batch))
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        for _ in range(2):
            for _ in range(3):
                torch.testing.assert_close(cache(batch)[0].cam, expected, rtol=0, atol=1e-5)
            assert len(cache._graphs) == 1 and not cache._is_off
            cache.free_memory()
            assert not cache._graphs


@pytest.mark.gpu
def test_network_and_masks_do_not_wait_for_a_gpu(
    gpu: torch.device, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labeler = load(tiny_checkpoint, "cuda")
    job = mask_job(labeler, tmp_path)
    assert job.device == "cuda"
    steps = DeviceSteps(labeler, job, batch_size=4)
    decoded = read(make_photos(tmp_path / "photos", SIZES[:1] * 4), labeler)
    for _ in range(3):  # kernels compiled, the graph captured
        list(steps.run([decoded]))
    forward: Any = steps._forward
    assert len(forward._graphs) == 1 and not forward._is_off
    lane = Lane(labeler.device, "one")
    images: Any = decoded
    item: Any = steps.plan(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, step, kind in steps.lanes.steps:
            item = lane.submit(step, item).result() if isinstance(item, kind) else item
    finally:
        torch.cuda.set_sync_debug_mode("default")
        lane.close()
    assert len(steps.describe(steps.lanes.collect(item))) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("labels", ["given", "predicted"])
@pytest.mark.parametrize("method", ["cam", "ad_cam"])
def test_masks_of_a_gpu_are_those_of_its_plain_steps(
    gpu: torch.device,
    tiny_checkpoint: Path,
    tmp_path: Path,
    full_float32: None,
    labels: str,
    method: str,
) -> None:
    """Many images through lanes, graphs and processes; each alone, by the plain steps.

    In full float32: batches of other sizes round otherwise in TF32. Attention of random weights is
    all but constant, so that rounding decides what AD-CAM makes of it: on a CPU, noise of 1e-5 in
    the embedded patches moves 3 % of the pixels, and none with queries, keys and values that are
    eight times as large.
    """
    gpu_labeler = load(tiny_checkpoint, "cuda", crf="toco", method=method)
    for block in gpu_labeler.network.backbone.blocks:  # type: ignore[attr-defined]
        block.attn.qkv.weight.data *= 8
    sizes = [(40, 64), (64, 40), (44, 60)] * 12
    tasks = make_photos(tmp_path / "photos", sizes)
    rows = "".join(f"{task.img_id},{'cat' if task.index % 2 else 'dog horse'}\n" for task in tasks)
    (tmp_path / "labels.csv").write_text("image_id,labels\n" + rows)
    images = load_folder(
        tmp_path / "photos", labels=tmp_path / "labels.csv", classes=gpu_labeler.class_set
    )
    result = generate(
        images,
        gpu_labeler,
        tmp_path / "out",
        labels=labels,
        workers=2,
        batch_size=4,
        progress=False,
    )
    assert result.ok == len(sizes)
    names = gpu_labeler.class_set.classes
    equal = []
    for record in images.records:
        given = [names[i] for i in record.class_ids or ()] if labels == "given" else None
        label = gpu_labeler(record.img_path, labels=given)
        mask = read_mask(tmp_path / "out" / "masks" / f"{record.img_id}.png")
        equal.append(float((mask == label.mask).mean()))
    assert np.mean(equal) > 0.998 and min(equal) > 0.95
