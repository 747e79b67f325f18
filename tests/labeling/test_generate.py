"""Generation: files, resuming, one bad image among good ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cli import main
from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.folder import load_folder
from adcam.data.png import read_mask
from adcam.labeling import executor
from adcam.labeling import mask_maker as mask_maker_module
from adcam.labeling import run as run_module
from adcam.labeling.generate import generate
from adcam.labeling.inputs import Resizer
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.map_maker import MapMaker
from adcam.labeling.maps_file import load_maps
from adcam.labeling.mask_maker import MaskMaker
from adcam.labeling.run import INLINE_LIMIT, Run, default_workers
from adcam.labeling.steps import (
    Failed,
    Made,
    Mapped,
    Task,
    decode,
    infer_window,
    make_window,
)
from adcam.masks.background import DEFAULT_RULE
from adcam.masks.crf import refine_batch
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.settings import TestViews
from adcam.structures import ClassMaps, TokenMaps

ROWS = {"a": "cat", "b c": "dog horse", "sub/ü": "", "sub/z": "horse"}


def make_photo(path: Path, seed: int, hw: tuple[int, int] = (40, 64)) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((hw[1], hw[0]), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for seed, img_id in enumerate(ROWS):
        make_photo(root / f"{img_id}.png", seed, (40 + 3 * seed, 64))
    rows = "".join(f"{img_id},{labels}\n" for img_id, labels in ROWS.items())
    (root / "labels.csv").write_text("image_id,labels\n" + rows, "utf-8")
    return root


@pytest.fixture(scope="module")
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((64,)))


def read_entries(out: Path) -> list[dict[str, object]]:
    lines = (out / "manifest.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stable(tree: dict[str, bytes]) -> dict[str, object]:
    """What two runs of one command have in common: all but seconds, in manifest and report."""
    pages = {f"report/{name}" for name in ("report.html", "report.json", "report.md", "run.json")}
    tree = {name: content for name, content in tree.items() if name not in pages}
    lines = [json.loads(line) for line in tree["manifest.jsonl"].splitlines()]
    for line in lines:
        assert line.pop("seconds") >= 0
    return {**tree, "manifest.jsonl": lines}


def test_masks_maps_manifest_and_config(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    result = generate(images, labeler, tmp_path / "out", maps_dtype="uint8", progress=False)
    assert (result.ok, result.skipped, result.failed) == (4, 0, ())
    assert set(result.seconds) == {"decode", "network", "refine", "crf", "write", "total"}
    entries = read_entries(tmp_path / "out")
    assert [entry["id"] for entry in entries] == sorted(ROWS)
    for entry in entries:
        img_id = str(entry["id"])
        label = labeler(photos / f"{img_id}.png", labels=ROWS[img_id].split())
        mask = read_mask(tmp_path / "out" / "masks" / f"{img_id}.png")
        np.testing.assert_array_equal(mask, label.mask)
        stored = load_maps(tmp_path / "out" / "maps" / f"{img_id}.npz")
        assert stored.ori_hw == mask.shape and list(label.maps) == entry["classes"]
        assert entry["ori_hw"] == list(mask.shape)
        assert entry["image"] == f"../photos/{img_id}.png"
        assert entry["labels"] == "given" and entry["status"] == "ok"
        assert entry["rule"] == DEFAULT_RULE.rule
        assert entry["threshold"] == label.pseudo_mask.threshold
        assert entry["chosen_on"] == labeler.options.rule.chosen_on
        assert entry["weights"] == labeler.weights_hash
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["labeler"] == labeler.describe()
    assert config["labels"]["source"] == "given"


def test_a_second_run_does_nothing(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    images = load_folder(photos)
    generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    before = read_tree(tmp_path / "out")
    said: list[str] = []
    result = generate(
        images, labeler, tmp_path / "out", labels="predicted", progress=False, log=said.append
    )
    assert (result.ok, result.skipped) == (0, 4)
    assert read_tree(tmp_path / "out") == before
    assert said == ["4 of 4 images are done already"]


def test_a_mask_that_was_changed_is_made_again(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    images = load_folder(photos)
    generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    before = read_tree(tmp_path / "out")
    (tmp_path / "out" / "masks" / "a.png").write_bytes(b"broken")
    (tmp_path / "out" / "masks" / "sub" / "z.png").unlink()
    result = generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    assert (result.ok, result.skipped) == (2, 2)
    assert stable(read_tree(tmp_path / "out")) == stable(before)


def test_bad_images_are_listed_and_tried_again(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    whole = (photos / "a.png").read_bytes()
    make_photo(photos / "cut.jpg", 7)
    jpeg = (photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("not a picture")
    Image.new("RGB", (1, 1), (9, 200, 30)).save(photos / "one.png")
    images = load_folder(photos)
    result = generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    assert [failure.img_id for failure in result.failed] == ["cut", "empty", "text"]
    assert "empty" in result.failed[1].error and "not an image" in result.failed[2].error
    assert result.ok == 5
    assert read_mask(tmp_path / "out" / "masks" / "one.png").shape == (1, 1)
    failed = [entry for entry in read_entries(tmp_path / "out") if entry["status"] == "failed"]
    assert [entry["id"] for entry in failed] == ["cut", "empty", "text"]
    assert not (tmp_path / "out" / "masks" / "text.png").exists()

    for name in ("cut.jpg", "empty.png", "text.jpg"):
        (photos / name).write_bytes(whole)
    result = generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    assert (result.ok, result.skipped, result.failed) == (3, 5, ())
    assert all(entry["status"] == "ok" for entry in read_entries(tmp_path / "out"))


def test_an_image_the_pipeline_cannot_handle_does_not_end_the_run(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mask = MaskMaker.__call__

    def fail(self: MaskMaker, maps: ClassMaps, img: np.ndarray, ori_hw: tuple[int, int]) -> object:
        if ori_hw == (43, 64):
            raise MemoryError
        return make_mask(self, maps, img, ori_hw)

    monkeypatch.setattr(MaskMaker, "__call__", fail)
    result = generate(
        load_folder(photos), labeler, tmp_path / "out", labels="predicted", progress=False
    )
    assert result.ok == 3
    assert [(f.img_id, f.error) for f in result.failed] == [("b c", "no memory is left")]


NFC_GROWS = "\u0958"
"""A letter that NFC spells as two: a name of 85 of them has 255 bytes, its id 510."""


def test_names_and_memory_fail_one_image_alone(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / f"{NFC_GROWS * 80}.png").write_bytes(whole)
    make_photo(photos / "memory.png", 9, (52, 64))
    make_photo(photos / "crf memory.png", 9, (56, 64))
    images = load_folder(photos)
    odd = [Record("nul\0", photos / "nul\0.png"), Record("../out", photos / "a.png")]
    images = ImageDataset(images.class_set, "all", [*images.records, *odd])
    resize, make_mask = Resizer.__call__, MaskMaker.__call__

    def allocate(self: Resizer, img: np.ndarray) -> tuple[torch.Tensor, ...]:
        if img.shape[0] == 52:
            torch.empty(1 << 50)
        return resize(self, img)

    def allocate_more(self: MaskMaker, *arguments: Any) -> object:
        if arguments[2][0] == 56:
            torch.empty(1 << 50)
        return make_mask(self, *arguments)

    monkeypatch.setattr(Resizer, "__call__", allocate)
    monkeypatch.setattr(MaskMaker, "__call__", allocate_more)
    result = generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    errors = {failure.img_id: failure.error for failure in result.failed}
    long = unicodedata.normalize("NFC", NFC_GROWS) * 80
    assert errors.keys() == {"loop", long, "memory", "crf memory", "nul\0", "../out"}
    assert result.ok == 4
    assert "no such file" in errors["loop"] and "File name too long" in errors[long]
    assert "DefaultCPUAllocator" in errors["memory"] and "Default" in errors["crf memory"]
    assert "lead outside" in errors["nul\0"] and "lead outside" in errors["../out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    again = generate(images, labeler, tmp_path / "out", labels="predicted", progress=False)
    assert (again.skipped, len(again.failed)) == (4, 6)


def test_a_mistake_in_the_program_is_no_failure_of_an_image(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MapMaker, inputs: object) -> object:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(Run, "check", lambda self, job: None)
    monkeypatch.setattr(MapMaker, "run_inputs", fail)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        generate(load_folder(photos), labeler, tmp_path / "out", labels="predicted", progress=False)


def test_images_without_a_class_are_named(
    photos: Path,
    labeler: PseudoLabeler,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = {
        name: max(
            PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((64,)))(
                photos / f"{name}.png"
            ).scores.values()
        )
        for name in ROWS
    }
    ranked = sorted(scores, key=lambda name: scores[name])
    between = (scores[ranked[1]] + scores[ranked[2]]) / 2
    command = [
        *("generate", str(photos), "--checkpoint", str(tiny_checkpoint), "--labels", "predicted"),
        *("--label-threshold", str(between), "--scales", "64", "--device", "cpu"),
        *("--out", str(tmp_path / "out"), "--json", str(tmp_path / "numbers.json")),
    ]
    for written in (4, 0):  # said again when nothing is left to do
        assert main(command) == 0
        printed = capsys.readouterr().err
        assert f"{written} masks written" in printed
        assert "In 2 images the classifier found no class" in printed
        assert "Lower --label-threshold, or name the classes with --labels" in printed
        numbers = json.loads((tmp_path / "numbers.json").read_text())
        assert numbers["no_class"] == [name for name in sorted(ROWS) if name in ranked[:2]]
        assert all(name in printed for name in numbers["no_class"])
    for entry in read_entries(tmp_path / "out"):
        empty = entry["id"] in ranked[:2]
        assert ("note" in entry) == empty and (entry["classes"] == []) == empty
        if empty:
            assert "the highest is " in str(entry["note"])
            assert f"with {scores[str(entry['id'])]:.3f}" in str(entry["note"])
            assert not read_mask(tmp_path / "out" / "masks" / f"{entry['id']}.png").any()


def test_threads_workers_and_interruptions_change_no_byte(tmp_path: Path) -> None:
    """More than 16 images, and fewer than 16 left when the run is resumed.

    The network is wide enough for its sums to depend on the number of threads.
    """
    torch.manual_seed(0)
    options = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"depth": 2}}
    network = TokenCAM("vit_tiny_patch16_224", num_fg_classes=3, backbone_kwargs={"depth": 2})
    for block in network.backbone.blocks:
        block.attn.qkv.weight.data *= 10  # random weights attend to all alike
    class_set = build_class_set("three", ["cat", "dog", "horse"])
    save_classifier(tmp_path / "wide.safetensors", network, options, class_set, {})
    for seed in range(INLINE_LIMIT + 3):
        make_photo(tmp_path / "photos" / f"{seed:02d}.png", seed, (150, 180))

    def command(out: str, workers: int) -> list[str]:
        return [
            *("generate", str(tmp_path / "photos"), "--out", str(tmp_path / out), "--save-maps"),
            *("--checkpoint", str(tmp_path / "wide.safetensors"), "--scales", "224"),
            *("--labels", "predicted", "--label-threshold", "0", "--crf", "--device", "cpu"),
            *("--workers", str(workers), "--maps-dtype", "float16"),
        ]

    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert main(command("inline", 0)) == 0
        assert main(command("workers", 2)) == 0
        expected = stable(read_tree(tmp_path / "inline"))
        assert stable(read_tree(tmp_path / "workers")) == expected
        manifest = tmp_path / "workers" / "manifest.jsonl"
        manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:6]))
        assert main(command("workers", 2)) == 0
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(threads)
    assert stable(read_tree(tmp_path / "workers")) == expected


def test_images_without_labels_are_named_and_nothing_is_written(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    (photos / "labels.csv").write_text("image_id,labels\na,cat\n")
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    with pytest.raises(ValueError, match=r"3 of 4 images have no labels: b c, .*--labels predict"):
        generate(images, labeler, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_class_ids_are_matched_by_name(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    other = build_class_set("other", ["horse", "dog", "cat"])
    images = load_folder(photos, labels=photos / "labels.csv", classes=other)
    generate(images, labeler, tmp_path / "out", progress=False)
    assert [e["classes"] for e in read_entries(tmp_path / "out")] == [
        ["cat"],
        ["dog", "horse"],
        ["horse"],
        [],
    ]
    stranger = build_class_set("other", ["horse", "dog", "cat", "wolf"])
    (photos / "labels.csv").write_text("image_id,labels\na,wolf\nb c,\nsub/ü,\nsub/z,\n", "utf-8")
    images = load_folder(photos, labels=photos / "labels.csv", classes=stranger)
    with pytest.raises(ValueError, match="unknown class 'wolf'"):
        generate(images, labeler, tmp_path / "new", progress=False)


def test_other_images_of_the_same_names_are_labelled_again(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "others")
    for folder, skipped in ((photos, 0), (tmp_path / "others", 0), (tmp_path / "others", 4)):
        result = generate(
            load_folder(folder), labeler, tmp_path / "out", labels="predicted", progress=False
        )
        assert result.skipped == skipped


def test_other_labels_are_another_run(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    labels = photos / "labels.csv"
    classes = labeler.class_set
    first = load_folder(photos, labels=labels, classes=classes)
    generate(first, labeler, tmp_path / "out", progress=False)
    labels.write_text(labels.read_text("utf-8").replace("a,cat", "a,dog"), "utf-8")
    second = load_folder(photos, labels=labels, classes=classes)
    before = read_tree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"labels\.hash: "):
        generate(second, labeler, tmp_path / "out", progress=False)
    assert read_tree(tmp_path / "out") == before
    generate(second, labeler, tmp_path / "out", overwrite=True, progress=False)
    assert read_entries(tmp_path / "out")[0]["classes"] == ["dog"]


def test_a_labeler_that_fails_on_every_image_fails_before_writing(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((8,)))
    with pytest.raises(ValueError, match="at least one patch"):
        generate(load_folder(photos), broken, tmp_path / "out", labels="predicted", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"labels": "guessed"}, "labels must be one of"),
        ({"maps_dtype": "float64"}, "maps_dtype must be None or one of"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_options(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(load_folder(photos), labeler, tmp_path / "out", progress=False, **option)


@pytest.mark.parametrize(
    ("num_images", "end"),
    [
        (12, signal.SIGKILL),
        # So many that other processes help.
        pytest.param(2 * INLINE_LIMIT, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2 * INLINE_LIMIT, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_killed_half_way_the_same_command_gives_the_same_bytes(
    tmp_path: Path, tiny_checkpoint: Path, num_images: int, end: signal.Signals
) -> None:
    for seed in range(num_images):
        make_photo(tmp_path / "photos" / f"{seed:02d}.jpg", seed, (90, 120 + seed))
    (tmp_path / "photos" / "07.jpg").write_text("not a picture")

    def command(out: str) -> list[str]:
        return [
            *("generate", str(tmp_path / "photos"), "--checkpoint", str(tiny_checkpoint)),
            *("--out", str(tmp_path / out), "--labels", "predicted", "--label-threshold", "0"),
            *("--scales", "64", "--crf", "lattice", "--save-maps", "--device", "cpu"),
        ]

    assert main(command("whole")) == 1
    manifest = tmp_path / "killed" / "manifest.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "adcam", *command("killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.is_file() and manifest.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.001)
    process.send_signal(end)
    code = 130 if end == signal.SIGINT else -end
    assert process.wait() == code, "the run ended before it could be killed"
    done = manifest.read_bytes().count(b"\n")
    assert 2 <= done < num_images
    # What a kill in the middle of a write leaves, wherever this one happened to hit.
    with manifest.open("ab") as file:
        file.write(b'{"id": "1')
    (tmp_path / "killed" / "masks" / ".adcam-0.tmp").write_bytes(b"half")

    assert main(command("killed")) == 1
    whole, resumed = (stable(read_tree(tmp_path / name)) for name in ("whole", "killed"))
    assert len([name for name in whole if name.startswith("masks/")]) == num_images - 1
    assert resumed == whole


@pytest.mark.slow
def test_a_huge_image_in_bounded_memory(tmp_path: Path, tiny_checkpoint: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    coarse.resize((12_000, 9_000), Image.Resampling.BILINEAR).save(photos / "huge.jpg")
    arguments = [
        *("generate", str(photos), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"),
        *("--out", str(tmp_path / "out"), "--labels", "predicted", "--label-threshold", "0"),
    ]
    script = (
        "import resource, sys\n"
        "from adcam.cli import main\n"
        f"code = main({arguments!r})\n"
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    code, peak_mib = map(int, run.stdout.split()[-2:])
    assert code == 0
    mask = read_mask(tmp_path / "out" / "masks" / "huge.png")
    assert mask.shape == (9_000, 12_000) and len(np.unique(mask)) > 1
    # Measured 1.7 GB, of which the imports take 0.8 (1.8 GB with the lattice CRF).
    assert peak_mib * 1024**2 < 2.5e9


class Deadly(TokenCAM):
    """A network that takes its process down at the sight of a black image, as bad kernels do."""

    def token_maps(
        self, inputs: torch.Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        if inputs.std(dim=(0, 2, 3)).max() == 0 and inputs.max() < -0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().token_maps(inputs, layer_sets=layer_sets)


def test_workers_write_the_same_bytes_and_one_that_dies_names_its_image(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    loaded = load_classifier(tiny_checkpoint)
    network = Deadly(
        "vit_tiny_patch16_224",
        num_fg_classes=3,
        img_size=32,
        backbone_kwargs={"embed_dim": 24, "depth": 3, "num_heads": 2},
    )
    network.load_state_dict(loaded.network.state_dict())
    labeler = PseudoLabeler(
        network, loaded.class_set, device="cpu", views=TestViews((64,), flip=True)
    )
    photos = tmp_path / "photos"
    for seed in range(INLINE_LIMIT + 2):
        make_photo(photos / f"{seed:02d}.png", seed, (40, 64 + seed % 3))
    (photos / "04.png").write_text("not a picture")
    alone = generate(
        load_folder(photos),
        labeler,
        tmp_path / "alone",
        labels="predicted",
        maps_dtype="uint8",
        progress=False,
    )
    Image.new("RGB", (64, 40)).save(photos / "05 black.png")
    together = generate(
        load_folder(photos),
        labeler,
        tmp_path / "together",
        labels="predicted",
        maps_dtype="uint8",
        workers=2,
        progress=False,
    )
    assert [f.img_id for f in alone.failed] == ["04"]
    assert [f.img_id for f in together.failed] == ["04", "05 black"]
    assert together.failed[1].error.startswith("it cost two worker processes, killed")
    assert together.ok == alone.ok == INLINE_LIMIT + 1
    one, two = (stable(read_tree(tmp_path / name)) for name in ("alone", "together"))
    lines = [line for line in two["manifest.jsonl"] if line["id"] != "05 black"]  # type: ignore
    assert {**two, "manifest.jsonl": lines, "plan.json": one["plan.json"]} == one
    assert (alone.parallelism["network"], together.parallelism["network"]) == (1, 2)
    assert all(0 <= share <= 1 for share in together.shares.values())


def test_an_image_that_killed_a_run_costs_the_next_one_a_worker_and_no_more(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Without workers, the run dies of it; what it leaves is a lock that nobody gave back."""
    loaded = load_classifier(tiny_checkpoint)
    small = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    network = Deadly("vit_tiny_patch16_224", num_fg_classes=3, img_size=32, backbone_kwargs=small)
    network.load_state_dict(loaded.network.state_dict())
    labeler = PseudoLabeler(network, loaded.class_set, device="cpu", views=TestViews((32,)))
    make_photo(tmp_path / "photos" / "a.png", 0)
    Image.new("RGB", (64, 40)).save(tmp_path / "photos" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".adcam-lock").write_text('{"process": 1, "host": "gone"}')
    result = generate(
        load_folder(tmp_path / "photos"),
        labeler,
        tmp_path / "out",
        labels="predicted",
        progress=False,
    )
    assert result.ok == 1
    assert [failure.img_id for failure in result.failed] == ["b"]
    assert "killed by SIGKILL; if memory was short" in result.failed[0].error


def test_a_network_fed_by_this_process_writes_the_same_bytes(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"labels": "predicted", "batch_size": 2, "maps_dtype": "uint8", "progress": False}
    images = load_folder(photos)
    generate(images, labeler, tmp_path / "inline", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(run_module, "INLINE_LIMIT", 0)
    monkeypatch.setattr(Run, "_on_cpu", False)
    result = generate(images, labeler, tmp_path / "split", workers=1, **options)  # type: ignore[arg-type]
    assert (result.ok, result.parallelism["network"], result.parallelism["crf"]) == (4, 1, 1)
    inline, split = (stable(read_tree(tmp_path / name)) for name in ("inline", "split"))
    assert inline == split


def test_a_crf_beside_the_network_writes_the_same_bytes(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the network's process makes the masks of a window at once, another writes."""
    labeler = PseudoLabeler.from_checkpoint(
        tiny_checkpoint, device="cpu", views=TestViews((64,)), crf="toco"
    )
    assert labeler.mask_maker.crf_device == "cpu"
    with pytest.raises(ValueError, match=r"'lattice-gpu' computes on the GPU .* is 'cpu'"):
        PseudoLabeler.from_checkpoint(
            tiny_checkpoint, device="cpu", crf="toco", crf_backend="lattice-gpu"
        )
    images = load_folder(photos)
    options = {"labels": "predicted", "batch_size": 2, "progress": False}
    generate(images, labeler, tmp_path / "inline", **options)  # type: ignore[arg-type]
    # A name of the CPU by which it is not recognised as such.
    labeler.mask_maker = replace(labeler.mask_maker, crf_device="cpu:0")
    together: list[int] = []

    def count(probs: list[torch.Tensor], imgs: list[Any], *, crf: str) -> list[torch.Tensor]:
        together.append(len(probs))
        return refine_batch(probs, imgs, crf=crf)

    monkeypatch.setattr(mask_maker_module, "refine_batch", count)
    generate(images, labeler, tmp_path / "whole", **options)  # type: ignore[arg-type]
    assert together == [4]
    monkeypatch.setattr(run_module, "INLINE_LIMIT", 0)
    monkeypatch.setattr(Run, "_on_cpu", False)
    result = generate(images, labeler, tmp_path / "split", workers=2, **options)  # type: ignore[arg-type]
    assert (result.ok, result.parallelism["crf"], result.parallelism["write"]) == (4, 1, 2)
    assert together[0] == sum(together[1:]) == 4 and max(together[1:]) == 2
    inline, whole, split = (
        stable(read_tree(tmp_path / name)) for name in ("inline", "whole", "split")
    )
    assert inline == whole == split


def test_a_batch_that_fails_is_made_image_by_image(labeler: PseudoLabeler, tmp_path: Path) -> None:
    """A lack of memory for all costs none of them its mask; a mistake in the program is raised."""
    made: list[int] = []
    held: list[weakref.ref[torch.Tensor]] = []

    class Job:
        step, device = "crf", "cuda"
        error: Exception = torch.OutOfMemoryError("CUDA out of memory")

        def make_batch(self, images: Sequence[Mapped]) -> list[object]:
            in_memory = torch.zeros(3)
            held.append(weakref.ref(in_memory))
            raise type(self.error)(*self.error.args)

        def make(self, image: Mapped) -> object:
            # What was in memory when the batch failed is free.
            assert not any(ref() is not None for ref in held)
            made.append(image.task.index)
            if image.task.index == 2:
                raise ValueError("no mask of this one")
            return "mask"

    def mapped(index: int) -> Mapped:
        maps = ClassMaps((0,), np.ones((1, 4, 5), dtype=np.float32))
        img = np.zeros((4, 5, 3), dtype=np.uint8)
        task = Task(index, str(index), tmp_path, (0,))
        return Mapped(task, img, (4, 5), maps, np.ones(1), {"network": 1.0})

    failed = Failed(Task(1, "1", tmp_path, (0,)), "unreadable", {})
    images = [mapped(0), failed, mapped(2), mapped(3)]
    job = Job()
    first, second, third, last = make_window(images, job)  # type: ignore[arg-type]
    assert made == [0, 2, 3] and second is failed
    assert isinstance(first, Made) and isinstance(last, Made) and first.result == "mask"
    assert isinstance(third, Failed) and third.error == "no mask of this one"
    job.error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match="a mistake"):
        make_window(images, job)  # type: ignore[arg-type]


def test_a_batch_is_the_same_when_a_part_of_it_is_done(
    labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        make_photo(tmp_path / "photos" / f"{seed:02d}.png", seed, (40, 64 if seed % 2 else 96))
    images = load_folder(tmp_path / "photos")
    sizes: list[int] = []
    run_inputs = MapMaker.run_inputs

    def count(self: MapMaker, inputs: Sequence[Sequence[torch.Tensor]]) -> object:
        sizes.append(len(inputs))
        return run_inputs(self, inputs)

    monkeypatch.setattr(MapMaker, "run_inputs", count)
    out = tmp_path / "out"
    generate(images, labeler, out, labels="predicted", batch_size=2, progress=False)
    assert sizes == [1, *[2, 2] * 2, 2, 2]  # one blank image, windows of eight and of four
    before = stable(read_tree(out))
    sizes.clear()
    (out / "masks" / "03.png").unlink()
    (out / "masks" / "08.png").unlink()
    result = generate(images, labeler, out, labels="predicted", batch_size=2, progress=False)
    assert (result.ok, result.skipped) == (2, 10)
    assert sizes == [1, 2, 2]
    assert stable(read_tree(out)) == before


def test_what_fails_as_a_batch_is_tried_image_by_image(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        make_photo(photos / f"{index}.png", index)
    tasks = [Task(index, f"{index}", photos / f"{index}.png", (index,)) for index in range(3)]
    resizer = labeler.map_maker.resizer
    decoded = [decode(task, resizer=resizer, max_pixels=1 << 22) for task in tasks]
    expected = infer_window(decoded, labeler, batch_size=1)
    run_inputs = MapMaker.run_inputs
    held: list[weakref.ref[torch.Tensor]] = []

    def little_memory(self: MapMaker, inputs: Sequence[Sequence[torch.Tensor]]) -> object:
        # What was in memory when a larger batch failed is free.
        assert not any(ref() is not None for ref in held)
        in_memory = torch.zeros(3)
        held.append(weakref.ref(in_memory))
        if len(inputs) > 1 or torch.equal(inputs[0][0], decoded[1].inputs[0]):  # type: ignore
            raise torch.OutOfMemoryError("no room")
        return run_inputs(self, inputs)

    monkeypatch.setattr(MapMaker, "run_inputs", little_memory)
    results = infer_window(decoded, labeler, batch_size=3)
    assert [result.task.index for result in results] == [0, 1, 2]
    assert isinstance(results[1], Failed) and results[1].error == "no room"
    for i in (0, 2):
        assert isinstance(results[i], Mapped) and isinstance(expected[i], Mapped)
        np.testing.assert_array_equal(results[i].maps.score_maps, expected[i].maps.score_maps)


@pytest.mark.parametrize(
    ("processors", "device", "workers"),
    [(1, "cpu", 0), (2, "cpu", 2), (64, "cpu", 16), (1, "cuda", 0), (8, "cuda", 7)],
)
def test_workers_by_default(
    labeler: PseudoLabeler,
    processors: int,
    device: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "num_processors", lambda: processors)
    monkeypatch.setattr(labeler.map_maker, "device", torch.device(device))
    assert default_workers(labeler) == workers
