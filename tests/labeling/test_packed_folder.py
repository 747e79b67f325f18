"""Results in large files: the bytes of an output folder, complete or done again."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.cli.labeler import path_or_url
from adcam.convert.packed import convert_unpack
from adcam.data.dataset import ImageDataset
from adcam.data.open_images import open_images
from adcam.errors import AdcamError
from adcam.files import read_json
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.manifest import read_manifest_table
from adcam.labeling.merge import merge_shards
from adcam.labeling.packed_folder import PackedFolder, PackedOutput
from adcam.labeling.packed_parts import FORMATS, read_packed
from adcam.labeling.shards import Shard
from adcam.labeling.status import read_status
from adcam.labeling.verify import verify_folder
from adcam.parquet import read_table
from adcam.settings import TestViews

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")


def read_tree(folder: Path) -> dict[str, Any]:
    """The files of an output folder, its manifest without seconds."""
    tree: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    lines = [json.loads(line) for line in tree.pop("manifest.jsonl").splitlines()]
    tree["manifest.jsonl"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return tree


@pytest.fixture(scope="module")
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(
        tiny_checkpoint, device="cpu", views=TestViews((32,)), label_threshold=0.2
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, labeler: PseudoLabeler) -> ImageDataset:
    """Seven photographs, the third of which cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(7):
        pixels = np.random.default_rng(seed).integers(0, 255, (20 + seed, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}.png")
    (root / "2.png").write_text("no image")
    return open_images(root, labeler.class_set, labels=None)


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, images: ImageDataset, labeler: PseudoLabeler
) -> Path:
    """The output folder that all others are compared with."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(images, labeler, out)
    return out


def run(images: ImageDataset, labeler: PseudoLabeler, out: Any, **options: Any) -> Any:
    return generate(
        images, labeler, out, labels="predicted", maps_dtype="uint8", progress=False, **options
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_unpacked_it_is_the_output_folder(
    kind: str, images: ImageDataset, labeler: PseudoLabeler, plain: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    result = run(images, labeler, PackedOutput(str(packed), kind, 3))
    assert (result.ok, [f.img_id for f in result.failed]) == (6, ["2"])
    names = sorted(p.relative_to(packed).as_posix() for p in packed.rglob("*") if p.is_file())
    parts = [f"data/part-0000{n}.{kind}" for n in range(3)]
    assert names == ["config.json", *parts, *(f"manifest/part-0000{n}.parquet" for n in range(3))]
    converted = convert_unpack(packed, plain.parent / kind)
    assert (converted.num_images, list(converted.failed)) == (6, ["2"])
    assert read_tree(plain.parent / kind) == read_tree(plain)
    # The local engine goes on in it.
    again = run(images, labeler, plain.parent / kind)
    assert (again.ok, again.skipped) == (0, 6)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_killed_run_leaves_whole_parts_and_ends_with_the_same_bytes(
    kind: str, images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    whole, killed = (PackedOutput(str(tmp_path / name), kind, 2) for name in ("whole", "killed"))
    run(images, labeler, whole)
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "whole" / "data").iterdir()}

    class Stop(Exception):  # noqa: N818  # no error, an end
        pass

    class Engine:
        def label(self, windows: Any, labeler: Any, job: Any, *, batch_size: int) -> Any:
            from adcam.labeling.steps import label_window

            # In another order, and dead in the middle of a part.
            for number, window in enumerate(reversed(list(windows))):
                if number == 4:
                    raise Stop
                yield from label_window(window, labeler, job, batch_size=batch_size)

        def count_processes(self) -> int:
            return 1

    with pytest.raises(Stop):
        run(images, labeler, killed, engine=Engine())
    manifests = sorted(p.name for p in (tmp_path / "killed" / "manifest").iterdir())
    assert manifests == ["part-00002.parquet", "part-00003.parquet"]
    (tmp_path / "killed" / "data" / f"part-00000.{kind}").write_bytes(b"")  # no manifest says it is
    result = run(images, labeler, killed)
    assert (result.skipped, result.ok, len(result.failed)) == (3, 3, 1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed" / "data").iterdir()} == wanted


def test_a_failed_image_is_tried_again_and_its_part_replaced(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for record in images.records:
        (root / record.img_path.name).write_bytes(record.img_path.read_bytes())
    mine = open_images(root, labeler.class_set, labels=None)
    output = PackedOutput(str(tmp_path / "packed"), "parquet", 4)
    run(mine, labeler, output)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "packed" / "data").iterdir()}
    (root / "2.png").write_bytes((root / "1.png").read_bytes())
    result = run(mine, labeler, output)
    assert (result.ok, result.skipped, result.failed) == (1, 6, ())
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "packed" / "data").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["part-00000.parquet"]
    files = {entry["id"]: contents for entry, contents in read_packed(tmp_path / "packed")}
    assert list(files) == [str(n) for n in range(7)]
    assert files["2"] == files["1"]


def test_shards_have_parts_of_their_own(
    images: ImageDataset, labeler: PseudoLabeler, plain: Path, tmp_path: Path
) -> None:
    output = PackedOutput(str(tmp_path / "packed"), "tar", 3)
    run(images, labeler, output, shard=Shard(0, 2))
    with pytest.raises(AdcamError, match=r"nothing was unpacked:\n  shard 1/2 was not started"):
        convert_unpack(tmp_path / "packed", plain.parent / "shards")
    run(images, labeler, output, shard=Shard(1, 2))
    found = {entry["id"] for entry, _ in read_packed(tmp_path / "packed")}
    assert found == {record.img_id for record in images.records}
    convert_unpack(tmp_path / "packed", plain.parent / "shards")
    masks = {p.name: p.read_bytes() for p in (plain / "masks").iterdir()}
    assert {p.name: p.read_bytes() for p in (plain.parent / "shards/masks").iterdir()} == masks
    with pytest.raises(AdcamError, match=r"packed\.shards: 2 -> 1"):
        run(images, labeler, PackedOutput(str(tmp_path / "packed"), "tar", 3))
    with pytest.raises(AdcamError, match="--overwrite would remove"):
        run(images, labeler, output, shard=Shard(0, 2), overwrite=True)


def test_a_part_with_a_damaged_manifest_is_made_again(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    output = PackedOutput(str(tmp_path / "packed"), "tar", 3)
    run(images, labeler, output)
    manifest = tmp_path / "packed/manifest/part-00001.parquet"
    columns = read_table(manifest, ("id", "mask"))
    manifest.write_bytes(manifest.read_bytes()[:-9])
    result = run(images, labeler, output)
    assert (result.ok, result.skipped, len(result.failed)) == (3, 3, 1)
    assert read_table(manifest, ("id", "mask"))[0] == columns[0]


def test_other_images_and_settings_are_another_run(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    output = PackedOutput(str(tmp_path / "packed"), "tar", 3)
    run(images, labeler, output)
    with pytest.raises(AdcamError, match=r"packed\.images: 7 -> 5"):
        run(images[:5], labeler, output)
    with pytest.raises(AdcamError, match=r"packed\.images_per_file: 3 -> 4"):
        run(images, labeler, replace(output, images_per_file=4))
    run(images[:5], labeler, output, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "packed/data").iterdir()) == [
        "part-00000.tar",
        "part-00001.tar",
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(AdcamError, match=r"holds files, but no config\.json"):
        run(images, labeler, PackedOutput(str(tmp_path / "other")))
    with pytest.raises(AdcamError, match="packed as one of"):
        PackedOutput("x", "zip")
    with pytest.raises(AdcamError, match="at least 1"):
        PackedOutput("x", "tar", 0)


def test_a_changed_mask_is_noticed(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    run(images, labeler, PackedOutput(str(tmp_path / "packed"), "tar", 9))
    path = tmp_path / "packed" / "data" / "part-00000.tar"
    with tarfile.open(path) as archive:
        offset = archive.getmember("4.mask.png").offset_data
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AdcamError, match=r"part-00000\.tar: the mask of image '4' is not the one"):
        convert_unpack(tmp_path / "packed", tmp_path / "out")
    with pytest.raises(AdcamError, match="no folder of packed results"):
        convert_unpack(tmp_path, tmp_path / "out2")


@pytest.mark.parametrize("kind", FORMATS)
def test_status_and_verify_say_what_they_say_of_files(
    kind: str, images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    output = PackedOutput(str(out), kind, 2)
    run(images, labeler, output)
    status, found = read_status(out), verify_folder(out)
    assert (status.images, status.ok, status.failed, status.missing) == (7, 6, 1, 0)
    assert status.shards[0].describe() == "done"
    assert (found.ok, found.failed, found.is_sound) == (6, 1, True)
    wanted = {p.name: p.read_bytes() for p in (out / "data").iterdir()}
    data = {n: out / "data" / f"part-0000{n}.{kind}" for n in range(4)}

    # One byte of a mask, a part cut short, one that is gone, and files of nobody.
    masks = [files["mask"] for _, files in read_packed(out) if files]
    # A Parquet file also has values among its statistics; in its column, the next length follows.
    end = len(masks[1]).to_bytes(4, "little") if kind == "parquet" else b""
    content = bytearray(data[0].read_bytes())
    content[content.index(masks[0] + end) + 60] ^= 1
    data[0].write_bytes(content)
    data[1].write_bytes(data[1].read_bytes()[:-9])
    data[2].unlink()
    (out / "data" / f"part-00009.{kind}").write_bytes(b"")
    (out / "manifest" / ".adcam-1.tmp").write_bytes(b"")
    found = verify_folder(out)
    assert (found.ok, found.unknown, found.is_sound) == (2, 0, False)
    assert found.changes == {
        "0": "the mask has changed",
        f"data/part-00001.{kind}": f"the part has {len(wanted[data[1].name]) - 9} bytes instead of "
        f"{len(wanted[data[1].name])}",
        f"data/part-00002.{kind}": "the part is missing",
    }
    assert found.orphans == [f"data/part-00009.{kind}", "manifest/.adcam-1.tmp"]
    assert verify_folder(out, by_size=True).changes.keys() == found.changes.keys() - {"0"}
    assert read_status(out).missing == 2

    (out / "data" / f"part-00009.{kind}").unlink()
    result = run(images, labeler, output)
    assert (result.ok, result.skipped) == (5, 1)  # the part of 0 and 1, of 2 and 3, of 4 and 5
    assert {p.name: p.read_bytes() for p in (out / "data").iterdir()} == wanted
    assert verify_folder(out).is_sound


def test_status_of_packed_shards_at_work_and_of_what_is_left(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    output = PackedOutput(str(out), "tar", 3)
    run(images, labeler, output, shard=Shard(0, 2))
    status = read_status(out)
    assert [shard.describe() for shard in status.shards] == ["done", "not started"]
    assert status.missing == 7 - status.ok - status.failed > 0
    assert verify_folder(out).others == ["shard 1/2 was not started"]
    with pytest.raises(AdcamError, match=r"1 of 2 shards are incomplete(.|\n)*1/2 was not started"):
        merge_shards(out)
    config = {k: v for k, v in read_json(out / "config.json").items() if k != "packed"}
    ids = [record.img_id for record in images.records]
    with PackedFolder(output, config, shard=Shard(1, 2)) as folder:
        folder.start(ids)
        folder.note(lines=folder.num_lines)
        (shard,) = (s for s in read_status(out).shards if s.state.shard == Shard(1, 2))
        assert shard.holder["lines"] == 0 and "at work" in shard.describe()
        with pytest.raises(AdcamError, match="is in use by process"):
            run(images, labeler, output, shard=Shard(1, 2))
        with pytest.raises(AdcamError, match="is in use by process"):
            run(images, labeler, output)
    assert read_status(out).shards[1].describe() == "interrupted"
    run(images, labeler, output, shard=Shard(1, 2))
    merged = merge_shards(out)
    assert (merged.ok, list(merged.failed)) == (6, ["2"])
    assert verify_folder(out).is_sound and read_status(out).missing == 0


def test_a_manifest_as_parquet_and_back(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(images, labeler, out)
    manifest, table = out / "manifest.jsonl", out / "manifest.parquet"
    lines = manifest.read_bytes()
    assert main(["merge", str(out), "--parquet"]) == 1  # one image could not be read
    assert list(read_manifest_table(table)) == [json.loads(line) for line in lines.splitlines()]
    manifest.unlink()
    for command in ("verify", "status"):
        assert main([command, str(out)]) == 2
    assert main(["merge", str(out)]) == 1 and manifest.read_bytes() == lines
    assert verify_folder(out).is_sound
    manifest.unlink()
    again = run(images, labeler, out)
    assert (again.ok, again.skipped) == (0, 6) and not table.exists()
    assert main(["merge", str(out), "--parquet"]) == 1
    manifest.unlink()
    (out / "masks" / "mine.png").write_bytes(b"precious")
    left = run(images[:2], labeler, out, overwrite=True)  # what the table lists is gone
    assert (left.ok, left.skipped) == (2, 0) and not table.exists()
    assert {path.stem for path in (out / "masks").iterdir()} == {"0", "1", "mine"}
    with pytest.raises(AdcamError, match="Parquet already"):
        run(images, labeler, PackedOutput(str(tmp_path / "packed")))
        merge_shards(tmp_path / "packed", parquet=True)


def test_links_and_a_removed_folder(
    images: ImageDataset, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("data", "manifest", "shards", "config.json", ".adcam-lock"):
        out = tmp_path / f"out of {name}"
        out.mkdir()
        (out / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(AdcamError, match="is a symbolic link; nothing is written through"):
            run(images, labeler, PackedOutput(str(out)))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with PackedFolder(PackedOutput(str(tmp_path / "out"), "tar", 1), {"adcam": "0"}) as folder:
        folder.start(["a", "b"])
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="was removed while a run"):
            folder.append({"id": "a", "status": "failed", "error": "x"})
    assert not (tmp_path / "out").exists()


def test_a_folder_named_by_file_is_one_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = PackedOutput(f"file://{tmp_path}/out", "tar", 1)
    assert path_or_url(output.path) == tmp_path / "out"
    assert path_or_url("s3://bucket/out") == "s3://bucket/out"

    def fill_disk(number: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with PackedFolder(output, {"adcam": "0"}) as folder:
        folder.start(["a", "b"])
        with pytest.raises(AdcamError, match="is in use by process"):
            PackedFolder(output, {"adcam": "0"})
        folder.append({"id": "a", "status": "failed", "error": "x"})
        monkeypatch.setattr("adcam.files.os.fsync", fill_disk)
        with pytest.raises(OSError, match="no space left"):
            folder.append({"id": "b", "status": "failed", "error": "x"})
    (part,) = (tmp_path / "out" / "manifest").iterdir()
    assert part.name == "part-00000.parquet"


def test_the_commands(
    images: ImageDataset, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images.records[0].img_path.parent
    common = [str(root), "--checkpoint", str(tiny_checkpoint), "--labels", "predicted"]
    common += ["--scales", "32", "--device", "cpu", "--workers", "0"]
    url = "memory://results/packed"
    words = ["--out", url, "--output-format", "parquet", "--images-per-file", "4"]
    assert main(["generate", *common, *words]) == 1  # one image cannot be read
    assert main(["status", url]) == 1
    assert main(["verify", url]) == main(["verify", url, "--sizes"]) == 0
    printed = capsys.readouterr().out
    assert f"{url}: 6 of 7 images done, 1 failed, 0 missing" in printed
    assert printed.count("is as its manifest says: 6 images sound, 1 without") == 2
    assert main(["merge", url]) == 1
    assert main(["status", "memory://nothing"]) == 2
    assert main(["convert", "unpack", url, "--out", str(tmp_path / "out")]) == 1
    assert sorted(p.stem for p in (tmp_path / "out/masks").iterdir()) == list("013456")
    line = json.loads((tmp_path / "out/manifest.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "out" / line["image"]).resolve() == (root / "0.png").resolve()
    assert "packed" not in read_json(tmp_path / "out/config.json")
    assert main(["generate", *common, "--out", "s3://bucket/x"]) == 2
    assert "behind a URL, masks are packed" in capsys.readouterr().err
    assert main(["generate", *common, "--out", "x", "--images-per-file", "4"]) == 2
    assert main(["generate", *common, "--out", "x", "--address", "auto"]) == 2
    assert "go with --engine ray" in capsys.readouterr().err
