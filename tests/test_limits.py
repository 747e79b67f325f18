"""Limits on what files may ask for, and files that ask for more than they hold."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cli import main
from adcam.data.coco_json import read_coco_json
from adcam.data.dataset import build_class_set
from adcam.data.images import ImageError, read_image
from adcam.data.labels import read_labels
from adcam.data.object_npy import load_object_npy
from adcam.data.png import read_mask
from adcam.data.score_maps import load_arrays
from adcam.data.xml_text import parse_xml
from adcam.errors import AdcamError
from adcam.files import read_json, read_text
from adcam.labeling.executor import WorkerCrash, WorkerPool
from adcam.labeling.steps import is_of_image
from adcam.limits import LimitError, Limits, machine_memory, read_limits, use_limits
from adcam.models.checkpoints import load_state_dict

LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;">]><worksheet><sheetData>&c;</sheetData></worksheet>"""


def test_limits_come_from_the_environment() -> None:
    assert read_limits({}) == Limits()
    assert read_limits({"ADCAM_MAX_IMAGE_PIXELS": "2e6"}).image_pixels == 2_000_000
    for text in ("x", "-1", "0.5", "nan", "inf"):
        with pytest.raises(AdcamError, match="ADCAM_MAX_CLASSES must be a whole number"):
            read_limits({"ADCAM_MAX_CLASSES": text})
    with pytest.raises(AdcamError, match="no limit 'pixels'; there are image_pixels, file_bytes"):
        use_limits({"pixels": 1}).__enter__()
    with use_limits({"classes": 3}):
        with use_limits({"classes": "4"}):
            assert read_limits().classes == 4
        assert read_limits().classes == 3
    assert "ADCAM_MAX_CLASSES" not in os.environ
    assert (machine_memory() or 1 << 30) >= 1 << 28


def _ask_for_too_much(what: str) -> None:
    raise LimitError(what, "file_bytes")


def test_a_limit_that_a_worker_process_meets_is_said_by_its_caller() -> None:
    with (
        WorkerPool(_ask_for_too_much, 1, on_crash=lambda item, _, again: again(item)) as pool,
        pytest.raises(LimitError, match=r"^a table: the limit is 1,073,741,824; --limits file_by"),
    ):
        pool.submit("a table").result()


def test_images_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (20, 10)).save(path)
    with use_limits({"image_pixels": 199}):
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match=r"too large .*--limits image_pixels"):
                read(path)
    message = r"a\.png: \d+ bytes .*--limits file_bytes"
    with use_limits({"file_bytes": 20}), pytest.raises(ImageError, match=message):
        read_image(path)
    with use_limits({"image_pixels": 200}):
        assert read_image(path).shape == (10, 20, 3)


def test_tables_texts_and_json(tmp_path: Path) -> None:
    table, content = tmp_path / "labels.csv", tmp_path / "a.json"
    table.write_text("image_id,labels\n" + "".join(f"{i},cat\n" for i in range(100)))
    content.write_text(json.dumps({"a": [1] * 100}))
    with use_limits({"file_bytes": 100, "json_bytes": 100}):
        with pytest.raises(AdcamError, match="--limits file_bytes"):
            read_labels(table)
        with pytest.raises(AdcamError, match="--limits file_bytes"):
            read_text(table)
        with pytest.raises(AdcamError, match="--limits json_bytes"):
            read_json(content)
    assert len(read_json(content)["a"]) == 100


def test_classes_and_annotations(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}
    shape = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 0}
    categories = [{"id": i, "name": f"c{i}"} for i in (1, 2)]
    content = {"images": [image], "annotations": [shape] * 3, "categories": categories}
    path.write_text(json.dumps(content))
    assert len(read_coco_json(path).images) == 1
    for limit, value in (("classes", 1), ("annotations", 2), ("image_pixels", 1999)):
        with use_limits({limit: value}), pytest.raises(AdcamError, match=f"--limits {limit}="):
            read_coco_json(path)
    with pytest.raises(AdcamError, match=r"10,001 classes: the limit is 10,000"):
        build_class_set("many", [str(i) for i in range(10_001)], masks=False)


def test_maps_that_unpack_to_more_than_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, scores=np.zeros(1_000_000, np.uint8))
    assert path.stat().st_size < 5000
    with use_limits({"file_bytes": 500_000}), pytest.raises(AdcamError, match="unpack to more"):
        load_arrays(path, "maps")


def test_billion_laughs_are_refused_in_every_format_that_could_tell_them(tmp_path: Path) -> None:
    with pytest.raises(AdcamError, match="declares entities"):
        parse_xml(LAUGHS, "a.xml")
    workbook = tmp_path / "labels.xlsx"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        sheets = b'<workbook><sheets><sheet id="r1"/></sheets></workbook>'
        relation = b'<r><Relationship Id="r1" Target="worksheets/sheet1.xml"/></r>'
        archive.writestr("xl/workbook.xml", sheets)
        archive.writestr("xl/_rels/workbook.xml.rels", relation)
        archive.writestr("xl/worksheets/sheet1.xml", LAUGHS)
    workbook.write_bytes(buffer.getvalue())
    with pytest.raises(AdcamError, match="declares entities"):
        read_labels(workbook)
    config = tmp_path / "a.yaml"
    config.write_text("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    arguments = ["train", str(config), "--safe-config", "--work-dir", str(tmp_path / "work")]
    assert main(arguments) == 2
    assert not (tmp_path / "work").exists()


def test_pickles_whose_lists_hold_one_another_are_refused(tmp_path: Path) -> None:
    laughs: object = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    cycle: list[object] = []
    cycle.append(cycle)
    array = np.empty(2, dtype=object)
    array[0] = laughs
    for value in (laughs, cycle, {"dog": laughs}, array):
        stored = np.empty((), dtype=object)
        stored[()] = value
        np.save(tmp_path / "a.npy", stored, allow_pickle=True)
        with pytest.raises(AdcamError, match=r"a\.npy: .*it stands for more than [\d,]+ values"):
            load_object_npy(tmp_path / "a.npy")
    one = [1, 2]
    stored[()] = {f"image {i}": one for i in range(1000)}  # as somebody may save them
    np.save(tmp_path / "a.npy", stored, allow_pickle=True)
    assert load_object_npy(tmp_path / "a.npy") == stored.item()


@pytest.mark.parametrize(
    ("inner", "message"),
    [({}, "holds no tensors by name"), ({"w": torch.zeros(2)}, r"under several keys \['0', '0',")],
)
def test_a_checkpoint_whose_dicts_hold_one_another_is_refused_at_once(
    tmp_path: Path, inner: dict[str, object], message: str
) -> None:
    laughs = inner
    for _ in range(3):
        laughs = {f"{i}": laughs for i in range(2000)}
    torch.save(laughs, tmp_path / "a.pth")
    with pytest.raises(AdcamError, match=message):
        load_state_dict(tmp_path / "a.pth")


def test_numpy_loads_or_gives_up_where_memory_is_bounded(tmp_path: Path) -> None:
    """OpenBLAS tries for ever to get memory for its threads, unless there is one alone."""
    resource = pytest.importorskip("resource")
    limit = 300_000 << 10
    done = subprocess.run(
        [sys.executable, "-m", "adcam", "evaluate", str(tmp_path), "--gt", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "OPENBLAS_"))},
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode in (1, 2) and "error" in done.stderr.lower()


def test_the_command_line_sets_limits_for_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    command = ["evaluate", str(tmp_path), "--gt", str(tmp_path), "--limits", "image_pixels=100"]
    assert main(command) in (1, 2)
    assert "too large" in capsys.readouterr().err
    assert main([*command, "colours=3"]) == 2
    assert "there is no limit 'colours'" in capsys.readouterr().err
    assert main([*command, "x"]) == 2
    assert "ADCAM_MAX_IMAGE_PIXELS" not in os.environ


def run_script(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines of Python in a process of its own, whose limits they may change."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), **variables},
    )


def ask_for(num_bytes: int) -> int:
    """What a worker of the test does: it asks for memory, and gets it or not."""
    return len(bytearray(num_bytes))


def test_a_worker_that_asks_for_too_much_gets_an_error_and_lives() -> None:
    def never(item: int, crash: WorkerCrash, retry: object) -> int:
        raise crash

    with WorkerPool(ask_for, 1, on_crash=never, max_bytes=1 << 31) as pool:
        assert pool.submit(1 << 20).result() == 1 << 20
        with pytest.raises(MemoryError):
            pool.submit(1 << 32).result()
        assert pool.submit(1 << 20).result() == 1 << 20


def test_a_run_with_little_memory_says_so_and_the_same_command_goes_on_with_more(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """`ulimit -v`, set once the network is loaded: a large photograph does not fit, others do."""
    pytest.importorskip("resource")
    if not Path("/proc/self/status").is_file():
        pytest.skip("how large this process is, only Linux says")
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(40, 32), (8000, 8000), (48, 40)]):
        Image.new("RGB", size, (20 * number, 90, 0)).save(tmp_path / "photos" / f"{number}.png")

    def command(out: str) -> list[str]:
        return [
            *("generate", str(tmp_path / "photos"), "--checkpoint", str(tiny_checkpoint)),
            *("--out", str(tmp_path / out), "--labels", "predicted", "--scales", "32"),
            *("--device", "cpu", "--workers", "0", "--report-images", "0"),
        ]

    script = (
        "import re, resource, sys\n"
        "from adcam.cli import main\n"
        "from adcam.labeling.run import Run\n"
        "into = Run.into\n"
        "def with_little(*args):\n"
        "    size = re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "    limit = (int(size) << 10) + (60 << 20)\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))\n"
        "    return into(*args)\n"
        "Run.into = with_little\n"
        f"sys.exit(main({command('out')!r}))\n"
    )
    done = run_script(script, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "1.png: not enough memory to decode it (no memory is left)" in done.stderr
    assert main(command("out")) == main(command("whole")) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "whole" / "masks").iterdir():
        assert (tmp_path / "out" / "masks" / path.name).read_bytes() == path.read_bytes()


def run_info_that_fails(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Let ``adcam info`` end with an error of its own and return what it says."""

    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("adcam.cli.info.run", fail)
    assert main(["info"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_command_that_gets_no_memory_ends_with_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_info_that_fails(error, monkeypatch, capsys)
    assert "error: there is not enough memory (" in said and "fewer --workers" in said
    monkeypatch.setattr("adcam.cli.info.run", lambda args: [][1])
    with pytest.raises(IndexError):
        main(["info"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_gpu_without_memory_is_told_from_a_mistake(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lacked memory is tried again with fewer images, whichever library asked for it."""
    assert is_of_image(error)
    said = run_info_that_fails(error, monkeypatch, capsys)
    assert "error: the GPU does not have enough memory (" in said and "smaller batches" in said


CONFIGS = {
    "a.json": '{"data": {"root": "x"}}',
    "a.toml": '[data]\nroot = "x"\n',
    "a.yaml": "data:\n  root: x\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_configs_say_what_programs_say(tmp_path: Path, name: str) -> None:
    from adcam.plain_config import read_plain_config

    (tmp_path / name).write_text(CONFIGS[name])
    assert read_plain_config(tmp_path / name) == {"data": {"root": "x"}}


def test_a_config_of_this_project_as_plain_values(tmp_path: Path) -> None:
    from mmengine.config import Config

    from adcam.installation import find_config
    from adcam.plain_config import use_safe_configs
    from adcam.settings import Settings, load_settings

    program = find_config("voc_animals/adcam_deit-tiny_10e_voc-animals")
    expected: Settings = load_settings(program)
    Config.fromfile(str(program)).dump(str(tmp_path / "plain.json"))
    with use_safe_configs(True):
        plain: Settings = load_settings(tmp_path / "plain.json")
        with pytest.raises(AdcamError, match=r"--safe-config reads \.json, .*not a program"):
            load_settings(program)
    assert plain.train == expected.train and plain.cam == expected.cam


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: !!python/object/apply:os.system ['touch canary']", "not plain YAML"),
        ("a.yaml", "a: &x 1\nb: *x", "line 2: YAML aliases are not read"),
        ("a.yaml", "a: [" * 3000, "not plain YAML|nested too deeply"),
        ("a.yaml", "- 1", "has sections"),
        ("a.json", '{"_base_": ["other.py"]}', "no key '_base_'"),
        ("a.json", '{"a": 1, "a": 2}', "given twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.toml", "a = ", "not TOML"),
        ("a.toml", "a = " + "[" * 3000, "not TOML|nested too deeply"),
        ("a.py", "open('canary', 'w')", "not a program"),
    ],
)
def test_what_is_not_plain_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    with pytest.raises(AdcamError, match=message):
        from adcam.plain_config import read_plain_config

        read_plain_config(Path(name))
    assert main(["train", name, "--safe-config", "--work-dir", "work"]) == 2
    assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_ends_a_run_and_the_same_command_goes_on(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """The largest file that the process may write is smaller than the manifest will be."""
    for number in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (20 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")

    def command(out: str) -> list[str]:
        return [
            *("generate", str(tmp_path / "photos"), "--checkpoint", str(tiny_checkpoint)),
            *("--out", str(tmp_path / out), "--labels", "predicted", "--scales", "32"),
            *("--device", "cpu", "--workers", "0"),
        ]

    script = (
        "import resource, sys\n"
        "from adcam.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))\n"
        f"sys.exit(main({command('out')!r}))\n"
    )
    done = run_script(script)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "File too large" in done.stderr
    manifest = tmp_path / "out" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 12 and all(json.loads(line)["status"] == "ok" for line in lines)
    assert main(command("out")) == main(command("whole")) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    for path in (tmp_path / "whole").rglob("*.png"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == (
            path.read_bytes()
        )


def test_a_folder_removed_in_mid_run_is_told_and_not_built_up_again(tmp_path: Path) -> None:
    from adcam.labeling.manifest import Manifest
    from adcam.labeling.output_folder import OutputFolder, require_folder

    out = tmp_path / "out"
    with OutputFolder(out, {"adcam": "0"}) as folder:
        folder.append({"id": "a", "status": "failed", "error": "x"})
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
        with pytest.raises(FileNotFoundError, match="was removed or replaced while this run"):
            folder.append({"id": "b", "status": "failed", "error": "x"})
        with pytest.raises(FileNotFoundError, match="was removed while a run"):
            require_folder(out)
        with pytest.raises(FileNotFoundError, match="was removed or replaced"):
            folder.finish(["a"])
        assert not out.exists()
    (tmp_path / "m.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"m\.jsonl"):
        Manifest(tmp_path / "m.jsonl").open()
    assert not (tmp_path / "elsewhere").exists()
