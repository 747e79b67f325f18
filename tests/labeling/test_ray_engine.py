"""Runs on Ray: real clusters on this machine, with a node that dies, and a real server for S3."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam.convert.packed import convert_unpack
from adcam.data.open_images import open_images
from adcam.errors import AdcamError
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.mask_maker import MaskMaker
from adcam.labeling.packed_folder import PackedOutput
from adcam.labeling.ray_engine import RayEngine
from adcam.remote_files import read_part
from adcam.settings import TestViews
from adcam.structures import ClassMaps, PseudoMask

ray = pytest.importorskip("ray")

# Ray and its dependencies warn of what is theirs.
pytestmark = pytest.mark.filterwarnings("default")

STORE_BYTES = 100_000_000


class Poisoned(MaskMaker):
    """Takes its time, and kills its process over a black image, as a fault in C code would."""

    def __call__(self, maps: ClassMaps, img: np.ndarray, ori_hw: tuple[int, int]) -> PseudoMask:
        if img.shape == (40, 30, 3) and not img.any():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return super().__call__(maps, img, ori_hw)


@pytest.fixture(autouse=True)
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Nodes and their processes must find this module, which defines `Poisoned`.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # This machine's memory is others' business.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    yield
    ray.shutdown()


@pytest.fixture
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(
        tiny_checkpoint, device="cpu", views=TestViews((32,), flip=True), label_threshold=0.2
    )


def make_photos(root: Path, count: int) -> Path:
    """Photographs in three sizes; the third cannot be read."""
    root.mkdir()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 255, (20 + 4 * (seed % 3), 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{seed:03}.png")
    (root / "002.png").write_text("no image")
    return root


def run(root: Any, labeler: PseudoLabeler, out: Any, **options: Any) -> Any:
    images = open_images(root, labeler.class_set, labels=None)
    options = {"labels": "predicted", "maps_dtype": "uint8", "progress": False, **options}
    return generate(images, labeler, out, **options)


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


@pytest.mark.slow
def test_two_engines_finish_each_others_folder(labeler: PseudoLabeler, tmp_path: Path) -> None:
    """Ray goes on where this process stopped, and this process where Ray did: the same bytes."""
    photos = make_photos(tmp_path / "photos", 12)
    run(photos, labeler, tmp_path / "local")
    images = open_images(photos, labeler.class_set, labels=None)
    options: dict[str, Any] = {"labels": "predicted", "maps_dtype": "uint8", "progress": False}
    engine = RayEngine(workers=1, store_bytes=STORE_BYTES)
    generate(images[:4], labeler, tmp_path / "out", **options)
    result = generate(images[:9], labeler, tmp_path / "out", engine=engine, **options)
    assert (result.ok, result.skipped, [f.img_id for f in result.failed]) == (5, 3, ["002"])
    result = generate(images, labeler, tmp_path / "out", **options)
    assert (result.ok, result.skipped, [f.img_id for f in result.failed]) == (3, 8, ["002"])
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "local")
    assert not ray.is_initialized()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that hands out work, and three nodes of one processor each."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(3)]
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("is_split", [False, True])
def test_a_node_dies_and_an_image_kills_its_process(
    cluster: Any, labeler: PseudoLabeler, tmp_path: Path, is_split: bool
) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    run(photos, labeler, tmp_path / "local")
    Image.new("RGB", (30, 40)).save(photos / "black.png")
    labeler.mask_maker = Poisoned(**asdict(labeler.mask_maker) | {"rule": labeler.mask_maker.rule})
    out = tmp_path / "out"
    killed, over = threading.Event(), threading.Event()
    head, nodes = cluster
    if is_split:  # three pools need three processors, also when one is gone
        head.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill() -> None:
        while count_lines(out / "manifest.jsonl") < 8:
            if over.wait(0.05):
                return
        head.remove_node(nodes[-1], allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        engine = RayEngine(head.address, is_split=is_split, workers=1 if is_split else 3)
        result = run(photos, labeler, out, engine=engine)
    finally:
        over.set()
        thread.join()
    assert killed.is_set()
    assert result.ok == 59
    errors = {failure.img_id: failure.error for failure in result.failed}
    assert list(errors) == ["002", "black"]
    assert "killed by SIGKILL" in errors["black"]
    (photos / "black.png").unlink()
    local, here = read_tree(tmp_path / "local"), read_tree(out)
    lines = here["manifest.jsonl"]
    assert len(lines) == len({line["id"] for line in lines}) == 61
    assert [line for line in lines if line["id"] != "black"] == local["manifest.jsonl"]
    same = here.keys() - {"manifest.jsonl", "plan.json"}
    assert {name: here[name] for name in same} == {name: local[name] for name in same}
    assert here.keys() == local.keys()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a server of this machine."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("shelf")
        yield "s3://shelf"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def put_inputs(photos: Path, bucket: str) -> dict[str, str]:
    """The same photographs as objects, as a tar archive, and as a Parquet file in a bucket."""
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(photos.iterdir())
    fs = fsspec.filesystem("s3")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files:
            archive.add(file, file.name)
            fs.pipe_file(f"{bucket}/photos/{file.name}", file.read_bytes())
    fs.pipe_file(f"{bucket}/tar/a.tar", buffer.getvalue())
    table = io.BytesIO()
    cells = [file.read_bytes() for file in files]
    columns = {"id": [file.stem for file in files], "image": cells}
    pq.write_table(pa.table(columns), table, row_group_size=3)
    fs.pipe_file(f"{bucket}/table/a.parquet", table.getvalue())
    return {
        "objects": f"{bucket}/photos",
        "tar": f"{bucket}/tar/*.tar",
        "parquet": f"{bucket}/table/a.parquet",
    }


def read_results(folder: Path) -> dict[str, Any]:
    """Masks, maps and what the manifest says of images, wherever these lie."""
    tree = read_tree(folder)
    for line in tree["manifest.jsonl"]:
        del line["image"], line["config"]
        line.pop("error", None)
    return {name: tree[name] for name in tree if name not in ("config.json", "plan.json")}


def test_s3_in_and_out(bucket: str, labeler: PseudoLabeler, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 7)
    run(photos, labeler, tmp_path / "local")
    expected = read_results(tmp_path / "local")
    for kind, source in put_inputs(photos, bucket).items():
        out = PackedOutput(f"{bucket}/out-{kind}", "tar" if kind == "tar" else "parquet", 3)
        result = run(source, labeler, out)
        assert (result.ok, [f.img_id for f in result.failed]) == (6, ["002"])
        assert run(source, labeler, out).skipped == 6
        convert_unpack(out.path, tmp_path / kind)
        assert read_results(tmp_path / kind) == expected
    with pytest.raises(AdcamError, match=r"missing: .*there are no images"):
        open_images(f"{bucket}/missing", labeler.class_set)


def test_a_store_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, labeler: PseudoLabeler
) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with pytest.raises(AdcamError, match=r"s3://shelf/photos: cannot be read \(.*connect"):
        open_images("s3://shelf/photos", labeler.class_set)
    with pytest.raises(OSError, match=r"s3://shelf/a\.png: .*connect"):
        read_part("s3://shelf/a.png", 0, 10)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_s3_on_ray(bucket: str, labeler: PseudoLabeler, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    run(photos, labeler, tmp_path / "local")
    sources = put_inputs(photos, bucket)
    out = PackedOutput(f"{bucket}/out", "parquet", 5)
    engine = RayEngine(workers=2, store_bytes=STORE_BYTES)
    result = run(sources["parquet"], labeler, out, engine=engine)
    assert (result.ok, [f.img_id for f in result.failed]) == (11, ["002"])
    convert_unpack(out.path, tmp_path / "ray")
    assert read_results(tmp_path / "ray") == read_results(tmp_path / "local")


def test_what_cannot_be_is_said(tmp_path: Path, labeler: PseudoLabeler) -> None:
    with pytest.raises(AdcamError, match="at least 1 worker"):
        RayEngine(workers=0)
    with pytest.raises(AdcamError, match="a share of a GPU"):
        RayEngine(gpus_per_process=-1)
    small = SimpleNamespace(cluster_resources=lambda: {"CPU": 2})
    with pytest.raises(AdcamError, match=r"need 3 processors.*cluster has 2"):
        RayEngine(is_split=True)._count_most(small)
    with pytest.raises(AdcamError, match="no GPU; take --device cpu"):
        RayEngine(gpus_per_process=0.5)._count_most(small)
    with pytest.raises(AdcamError, match="in a pool of its own"):
        RayEngine(gpus_per_process=0.5, is_split=False)
