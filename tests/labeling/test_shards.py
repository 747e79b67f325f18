"""Shards: who owns an image, several processes in one folder, one manifest in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.folder import load_folder
from adcam.errors import AdcamError
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.locks import FolderLock
from adcam.labeling.merge import choose_division, merge_shards
from adcam.labeling.output_folder import OutputFolder, read_output_folder
from adcam.labeling.shards import WHOLE, Shard, find_neighbours, parse_shard, shard_from_environment
from adcam.settings import TestViews

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((32,)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharded") / "photos"
    for number in range(NUM_IMAGES):
        path = root / ("ü" if number % 2 else "a b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (32 + number, 40, 3), dtype=np.uint8)).save(path)
    (root / "a b" / "bad.png").write_bytes(b"no picture")
    return root


def make(photos: Path, labeler: PseudoLabeler, out: Path, **options: Any) -> Any:
    images = load_folder(photos)[::-1]  # an order that is not that of the ids
    return generate(images, labeler, out, labels="predicted", progress=False, **options)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stable(folder: Path) -> dict[str, object]:
    """What two runs have in common: all but the seconds in the manifest, and the report."""
    tree = {n: content for n, content in read_tree(folder).items() if not n.startswith("report/")}
    lines = [json.loads(line) for line in tree["manifest.jsonl"].splitlines()]
    for line in lines:
        assert list(line)[-1] == "seconds" and line.pop("seconds") >= 0
    return {**tree, "manifest.jsonl": [list(line.items()) for line in lines]}


def test_every_image_has_one_owner_by_its_id_alone() -> None:
    ids = [f"folder/{number}" for number in range(4000)]
    for count in (1, 2, 7):
        owned = [[img_id for img_id in ids if Shard(i, count).owns(img_id)] for i in range(count)]
        assert sorted(img_id for part in owned for img_id in part) == sorted(ids)
        assert all(abs(len(part) - 4000 / count) < 200 for part in owned)
    assert [Shard(i, 4).owns("2007_000032") for i in range(4)] == [False, False, True, False]
    assert Shard(0, 1) == WHOLE and WHOLE.owns("half a symbol \ud800")


@pytest.mark.parametrize("text", ["4/4", "1/0", "-1/4", "1", "1/", "a/b", "1/4/2", "", "0/1000000"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(AdcamError, match="shard"):
        parse_shard(text)


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_MAX": "9",
    "SLURM_ARRAY_TASK_STEP": "2",
}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, "0/1"),
        ({"RANK": "2", "WORLD_SIZE": "8"}, "2/8"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "1/4"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "RANK": "5", "WORLD_SIZE": "8"}, "5/8"),
        (ARRAY, "2/4"),
        ({**ARRAY, "SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, "7/12"),
    ],
)
def test_the_place_among_the_processes_of_a_cluster(
    environment: dict[str, str], shard: str
) -> None:
    assert str(shard_from_environment(environment)) == shard


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "SLURM_LOCALID": "0"}, (1, 4)),
        ({"SLURM_LOCALID": "3", "SLURM_NTASKS_PER_NODE": "x"}, (3, 4)),
        ({"LOCAL_RANK": "-1"}, (0, 1)),
    ],
)
def test_the_place_on_a_machine(environment: dict[str, str], place: tuple[int, int]) -> None:
    assert find_neighbours(environment) == place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_ARRAY_TASK_ID": "8"}, "gaps"),
        ({"SLURM_ARRAY_TASK_MAX": "20"}, "gaps"),
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is no number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "no shard 4/4"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    change: dict[str, str], message: str
) -> None:
    with pytest.raises(AdcamError, match=message):
        shard_from_environment({**ARRAY, **change})


@pytest.mark.parametrize("batch_size", [1, 2])
def test_merged_shards_are_the_run_that_was_not_divided(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path, batch_size: int
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    make(photos, labeler, whole, batch_size=batch_size, maps_dtype="uint8")
    for index in (2, 0):
        make(photos, labeler, out, batch_size=batch_size, maps_dtype="uint8", shard=Shard(index, 3))
    before = read_tree(out)
    with pytest.raises(AdcamError, match=r"1 of 3 shards are incomplete.*\n.*1/3 was not started"):
        merge_shards(out)
    assert read_tree(out) == before
    make(photos, labeler, out, batch_size=batch_size, maps_dtype="uint8", shard=Shard(1, 3))
    with pytest.raises(AdcamError, match="holds shards that are not joined: run `adcam merge"):
        read_output_folder(out)
    result = merge_shards(out)
    assert (result.ok, list(result.failed)) == (NUM_IMAGES, ["a b/bad"])
    assert stable(out) == stable(whole)
    assert merge_shards(out) == result  # once more does no harm
    assert stable(out) == stable(whole)


def test_a_shard_resumes_and_names_what_it_lacks(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = make(photos, labeler, out, shard=Shard(0, 2))
    make(photos, labeler, out, shard=Shard(1, 2))
    manifest = out / "shards" / "00000-of-00002.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])  # killed while it wrote a line
    with pytest.raises(AdcamError, match=f"shard 0/2 lacks 2 of {len(lines)} images"):
        merge_shards(out)
    again = make(photos, labeler, out, shard=Shard(0, 2))
    assert again.skipped in (len(lines) - 2, len(lines) - 3)  # the bad image is tried again
    assert again.skipped + again.ok == first.ok
    merge_shards(out)
    make(photos, labeler, tmp_path / "whole")
    assert stable(out) == stable(tmp_path / "whole")


def test_another_division_and_the_whole_keep_what_is_done(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = make(photos, labeler, out, shard=Shard(0, 2)).ok
    thirds = [make(photos, labeler, out, shard=Shard(i, 3)) for i in range(3)]
    assert sum(result.skipped for result in thirds) == done
    assert sum(result.ok for result in thirds) == NUM_IMAGES - done
    assert choose_division(out).is_complete and len(choose_division(out).states) == 3
    (out / "shards" / "00001-of-00003.jsonl").unlink()
    # What the half had done of it is known all the same.
    result = make(photos, labeler, out)
    assert result.ok == thirds[1].ok
    assert not (out / "shards").exists()
    make(photos, labeler, tmp_path / "whole")
    assert stable(out) == stable(tmp_path / "whole")


def test_a_run_killed_before_its_end_is_merged_by_the_newest_lines(tmp_path: Path) -> None:
    config = {"adcam": "0"}
    with OutputFolder(tmp_path, config, shard=Shard(0, 2)) as shard:
        shard.append({"id": "a", "status": "failed", "error": "old"})
        shard.append({"id": "b", "status": "ok"})
    with OutputFolder(tmp_path, config) as whole:
        whole.start(["c", "d", "a", "b", "e"])
        for img_id, status in (("c", "failed"), ("d", "ok"), ("a", "ok"), ("e", "failed")):
            whole.append({"id": img_id, "status": status})
        whole.append({"id": "b", "status": "failed", "error": "not again"})
        for img_id in ("c", "e"):
            whole.append({"id": img_id, "status": "ok"})
        whole.append({"id": "d", "status": "failed", "error": "gone"})
    (state,) = choose_division(tmp_path).states
    assert (state.ok, state.failed, state.lines) == (4, 1, 10)
    result = merge_shards(tmp_path)
    assert (result.ok, result.failed) == (4, {"d": "gone"})
    lines = (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["c", "d", "a", "e", "b"]
    assert not (tmp_path / "shards").exists()


def test_shards_of_other_images_are_not_merged(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    images = load_folder(photos)[::-1]
    fewer = type(images)(images.class_set, "all", images.records[1:])
    for index, given in enumerate((images, fewer, images)):
        options = {"labels": "predicted", "progress": False, "shard": Shard(index, 3)}
        generate(given, labeler, out, **options)
    with pytest.raises(AdcamError, match="shard 1/3 was not started"):
        merge_shards(out)
    make(photos, labeler, out, shard=Shard(1, 3))
    merge_shards(out)
    make(photos, labeler, tmp_path / "whole")
    assert stable(out) == stable(tmp_path / "whole")


def test_who_may_work_in_a_folder_at_once(tmp_path: Path) -> None:
    config = {"adcam": "0"}
    in_use = f"is in use by process {os.getpid()} on"
    with OutputFolder(tmp_path, config, shard=Shard(0, 2)):
        OutputFolder(tmp_path, config, shard=Shard(1, 2)).close()
        for shard, message in (
            (Shard(0, 2), in_use),
            (Shard(0, 3), "divided into 2 shards by runs that are at work"),
            (WHOLE, in_use),
        ):
            with pytest.raises(AdcamError, match=message):
                OutputFolder(tmp_path, config, shard=shard)
        with pytest.raises(AdcamError, match=in_use):
            merge_shards(tmp_path)
        with pytest.raises(AdcamError, match=r'adcam: "0" -> "1"\nTake another folder\.'):
            OutputFolder(tmp_path, {"adcam": "1"}, shard=Shard(1, 2))
    with pytest.raises(AdcamError, match="--overwrite would remove what other shards"):
        OutputFolder(tmp_path, config, shard=Shard(0, 2), overwrite=True)
    with OutputFolder(tmp_path, config), pytest.raises(AdcamError, match=in_use):
        OutputFolder(tmp_path, config, shard=Shard(0, 2))
    assert not list(tmp_path.rglob("*lock*"))


def test_the_last_of_those_that_share_a_lock_removes_it(tmp_path: Path) -> None:
    one, two = (FolderLock(tmp_path, shared=True) for _ in range(2))
    one.release()
    with pytest.raises(AdcamError, match="in use"):
        FolderLock(tmp_path)
    two.release()
    assert list(tmp_path.iterdir()) == []
    FolderLock(tmp_path).release()


def test_overwrite_starts_over_what_shards_have_made(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make(photos, labeler, out, shard=Shard(0, 2))
    (out / "masks" / "mine.png").write_bytes(b"precious")
    result = make(photos, labeler, out, overwrite=True)
    assert (result.ok, result.skipped) == (NUM_IMAGES, 0)
    assert not (out / "shards").exists() and (out / "masks" / "mine.png").exists()


def test_processes_started_at_once_fill_one_folder(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [
        *("generate", str(photos), "--checkpoint", str(tiny_checkpoint), "--labels", "predicted"),
        *("--scales", "32", "--device", "cpu", "--workers", "0"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    calls = [sys.executable, "-m", "adcam", *command, "--out", str(out), "--shard", "auto"]
    started = [
        subprocess.Popen(
            calls,
            env={**environment, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [
        1 if "bad" in text else 0 for text in said
    ]
    assert "shard 1/2: " in said[1] and f"adcam merge {out}" in said[1]
    assert main(["merge", str(out)]) == 1  # the bad image
    assert f"{NUM_IMAGES} images have a mask, 1 have none\n  a b/bad: " in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "whole")]) == 1
    assert stable(out) == stable(tmp_path / "whole")
