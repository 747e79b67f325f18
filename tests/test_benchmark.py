"""The benchmark tool: what it times does the same thing, and how it times."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.data.shapes import make_shapes
from adcam.files import write_csv
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.run import RunResult
from adcam.metrics.localization import MaxBoxAccuracy
from adcam.models.classifier_file import load_classifier
from adcam.ops.dense_crf import available_backends
from adcam.ops.token_attention import token_attention
from adcam.settings import TestViews

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tools" / "benchmark"
SEGMENTER = "vit_fcn_shapes.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of tools/benchmark by name; they import one another as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import cases
    import child
    import measure
    import processes
    import rivals
    import run
    import tables
    import tune

    # A network of which building and reading take a moment.
    monkeypatch.setattr(cases, "SEGMENTER", ROOT / "configs" / "seg" / "shapes" / SEGMENTER)
    modules = (cases, child, measure, processes, rivals, run, tables, tune)
    return {module.__name__: module for module in modules}


def test_every_case_names_tests_that_exist(tool: dict[str, ModuleType]) -> None:
    for case in tool["cases"].CASES.values():
        assert case.tests and all((ROOT / test).is_file() for test in case.tests)
        for test in case.gpu_tests:
            assert "pytest.mark.gpu" in (ROOT / test).read_text()
        assert case.sizes and case.repeats >= 1


@pytest.mark.parametrize(
    ("device", "marks"),
    [
        ("cpu", {"test_color_diffusion.py": "not slow and not gpu"}),
        (
            "cuda:1",
            {
                "test_color_diffusion.py": "not slow",
                "test_color_diffusion_triton.py": "gpu and not slow",
            },
        ),
    ],
)
def test_on_a_gpu_the_tests_of_the_kernels_run_too(
    tool: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    marks: dict[str, str],
) -> None:
    started: dict[str, str] = {}

    def start(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started[Path(command[-1]).name] = command[-2]
        return subprocess.CompletedProcess(command, int("triton" in command[-1]))

    monkeypatch.setattr(subprocess, "run", start)
    failed = tool["run"].run_tests(["color_diffusion"], device)
    assert started == marks
    assert [Path(test).name for test in failed] == [name for name in marks if "triton" in name]


# A size at which each case takes a moment.
SMALL = {
    **dict.fromkeys(("token_attention", "attend", "common_neighbor", "diffusion", "refine"), 9),
    "two_hop_walk": 9,
    "color_diffusion": 9,
    **{
        "dense_crf": 2,
        "dense_crf_batch": 2,
        "level_boxes": 10,
        "forward": 32,
        **dict.fromkeys(("generate", "commands", "start", "growth"), 1),
    },
}
TINY = "deit_tiny_patch16_224"
# Whole commands, which tests below start.
LONG = ("generate", "commands", "start", "growth")


def test_every_case_has_a_small_size(tool: dict[str, ModuleType]) -> None:
    assert set(SMALL) == set(tool["cases"].CASES)


@pytest.mark.parametrize("name", SMALL)
def test_every_case_can_be_built_and_run(
    tool: dict[str, ModuleType],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(tool["cases"], "CRF_HW", (32, 40))
    # What would be compiled runs as it is: it must compute the same thing.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    setting = tool["cases"].Setting("cpu", 1, None, "val", tiny_checkpoint, "", None, 0, tmp_path)
    variants = tool["cases"].CASES[name].build(SMALL[name], setting)
    assert next(iter(variants)).startswith("adcam") or name == "forward"
    if name in LONG:
        return
    # All but bare products are compared with the reference.
    assert {label for label, variant in variants.items() if not variant.check} == {
        label for label in variants if label.startswith("gemm")
    }
    errors = tool["measure"].find_errors(variants)
    assert errors.keys() == {label for label in variants if not label.startswith("gemm")}
    exact = [x for x in errors if variants[x].dtype == "float32" and "float16" not in x]
    assert all(errors[label] < 1e-5 for label in exact)
    if name == "dense_crf_batch":
        assert all(variant.score() > 99.9 for variant in variants.values())
    for label in errors:
        got = variants[label].run()
        wrong = replace(variants[label], run=lambda got=got: worsen(got))
        with pytest.raises(ValueError, match="is not what the reference computes"):
            tool["measure"].find_errors({label: wrong})


def worsen(result: Any) -> Any:
    """A result in which each number is a tenth too large."""
    return [worsen(x) for x in result] if isinstance(result, list | tuple) else result * 1.1


def test_what_is_not_a_number_is_not_timed(tool: dict[str, ModuleType]) -> None:
    check = tool["measure"].Check(lambda got: float("nan"), 1.0)
    variants = {"adcam": tool["measure"].Variant(lambda: None, check=check)}
    with pytest.raises(ValueError, match="its error nan is above 1"):
        tool["measure"].find_errors(variants)


def test_on_a_gpu_rivals_also_run_with_tf32(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tool["cases"]
    monkeypatch.setattr(cases, "is_gpu", lambda device: True)  # though everything stays on the CPU
    setting = cases.Setting("cpu", 2, None, "val", None, TINY, None, 0, tmp_path)
    variants = cases.CASES["refine"].build(9, setting)
    pairs = {name: f"{name}, TF32" for name in ("torch eager", "torch.compile", "gemm roofline")}
    assert [name for name in variants if "TF32" in name] == [*pairs.values()]
    seen: list[str] = []
    monkeypatch.setattr(
        cases,
        "_refine",
        lambda *arguments: seen.append(torch.get_float32_matmul_precision()) or arguments[0],
    )
    variants = cases.CASES["refine"].build(9, setting)
    seen.clear()
    for name in ("torch eager, TF32", "torch eager"):
        variants[name].run()
    assert seen == ["high", "highest"]
    assert variants["torch eager, TF32"].dtype == "tf32"
    assert variants["torch eager, TF32"].check.tolerance == cases.ROUNDED
    assert variants["torch eager"].check.tolerance == cases.TOLERANCE
    assert variants["gemm roofline, TF32"].check is None


def test_tf32_ends_with_a_variant_that_fails(tool: dict[str, ModuleType]) -> None:
    def fail() -> None:
        assert torch.get_float32_matmul_precision() == "high"
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        tool["cases"]._with_tf32(tool["measure"].Variant(fail)).run()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_row_holds_the_times_by_call_and_as_a_graph(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = tool["measure"]
    variants = {
        "adcam": measure.Variant(lambda: None, graph=True),
        "rival": measure.Variant(lambda: None),
    }
    assert measure.add_graphs(variants, "cpu") == variants
    both = measure.add_graphs(variants, "cuda")
    assert [*both] == ["adcam", "rival", "adcam, as a graph"]
    timings = {
        name: measure.Timing([seconds], [1.0])
        for name, seconds in zip(both, (0.002, 0.006, 0.0005), strict=True)
    }
    monkeypatch.setattr(measure, "describe_environment", lambda device: {})
    first, second = measure.make_rows("refine", 9, 1, "cuda", both, timings, {"adcam": 1e-6})
    assert (first["ms_call"], first["ms_graph"], first["error"]) == ("2", "0.5", "1e-06")
    assert (second["ms_call"], second["ms_graph"], second["error"]) == ("6", "", "")
    assert second["times_ours"] == "3.000"
    called = {name: timings[name] for name in variants}
    first, second = measure.make_rows("refine", 9, 1, "cpu", variants, called, {})
    assert (first["ms_call"], first["ms_graph"]) == ("", "")


@pytest.mark.gpu
def test_a_graph_computes_what_its_variant_does(
    tool: dict[str, ModuleType], gpu: torch.device, tmp_path: Path
) -> None:
    setting = tool["cases"].Setting("cuda", 2, None, "val", None, TINY, None, 0, tmp_path)
    variants = tool["cases"].CASES["refine"].build(196, setting)
    here = {label: variant for label, variant in variants.items() if "compile" not in label}
    both = tool["measure"].add_graphs(here, "cuda")
    assert "adcam, artefacts out, as a graph" in both
    assert tool["measure"].find_errors(both).keys() >= {"adcam, as a graph", "torch eager, TF32"}


def test_a_row_names_the_network_that_is_timed(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, run = tool["cases"], tool["run"]
    case = cases.Case(
        "an image",
        (32,),
        ("tests/test_docs.py",),
        lambda size, setting: {"plain": tool["measure"].Variant(lambda: None)},
    )
    monkeypatch.setitem(cases.CASES, "forward", case)
    named = ["--op", "forward", "--device", "cpu", "--backbone", "vit_tiny_patch16_224"]
    args = run.parse_args(named)
    assert [row["case"] for row in run.run_case("forward", 32, 1, args)] == ["forward vit_tiny"]
    with pytest.raises(SystemExit):
        run.parse_args([*named, "--checkpoint", "classifier.safetensors"])


def test_a_row_of_generate_says_what_its_run_does(
    tool: dict[str, ModuleType],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases, measure = tool["cases"], tool["measure"]
    asked: list[Path | None] = []

    def generate(*arguments: Any, profile: Path | None = None, **options: Any) -> RunResult:
        asked.append(profile)
        busy = None if profile is None else 0.19
        return RunResult(2, 0, (), (), {"total": 1.0}, {}, 1.75, 117.0, busy)

    monkeypatch.setattr(cases, "generate", generate)
    setting = cases.Setting("cpu", 1, None, "val", tiny_checkpoint, TINY, None, 0, tmp_path)
    variant = cases.CASES["generate"].build(1, setting)["adcam, float32, one process"]
    variant.run()
    assert variant.notes() == {"images_per_s": 117.0, "first_image_s": 1.75}
    variants = {"adcam": replace(variant, score=None)}
    timings = {"adcam": measure.Timing([1.0], [1.0])}
    (row,) = measure.make_rows("generate", 1, 1, "cpu", variants, timings, {})
    assert [row[key] for key in measure.NOTES] == ["117", "1.75", ""]
    monkeypatch.setattr(cases, "is_gpu", lambda device: True)
    variant = cases.CASES["generate"].build(1, setting)["adcam, float32, one process"]
    variant.run()
    assert variant.notes()["gpu_busy"] == 0.19  # as a run that is recorded says
    assert asked == [None, None, tmp_path / "trace.json"]


@pytest.fixture
def small(tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A setting in which images are small, and so are their inputs."""
    monkeypatch.setattr(tool["cases"], "SCALES", (32, 48))
    monkeypatch.setattr(tool["cases"], "CRF_HW", (60, 84))
    return tool["cases"].Setting("cpu", 1, None, "val", None, TINY, None, 0, tmp_path)


def spoil_mask(masks: Path) -> None:
    """Change two of 60 rows of a mask."""
    (path, *_) = masks.glob("*.png")
    mask = np.array(Image.open(path))
    mask[:2] = 7 - mask[:2]
    Image.fromarray(mask).save(path)


def test_masks_of_generate_are_compared_with_the_plain_recipe(
    tool: dict[str, ModuleType], small: Any
) -> None:
    cases, find_errors = tool["cases"], tool["measure"].find_errors
    variants = cases.CASES["generate"].build(2, small)
    assert find_errors(variants) == {}  # nothing runs before it is timed
    # With so few pixels bfloat16 changes more of them than it may.
    chosen = {key: variants[key] for key in variants if key.startswith(("adcam, float32", "peer"))}
    for variant in chosen.values():
        variant.run()
    errors = find_errors(chosen, is_after=True)
    assert errors.keys() == chosen.keys()
    spoil_mask(small.scratch / "inline" / "masks")
    with pytest.raises(ValueError, match=r"one process is not what .* 0.01\d* is above 0.001"):
        find_errors(chosen, is_after=True)


def test_results_of_commands_are_compared_with_those_of_single_runs(
    tool: dict[str, ModuleType], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = small.scratch / "gpu"
    gpu.mkdir()
    find_errors, works = tool["measure"].find_errors, tool["child"].WORKS
    started: list[Any] = []

    def run(work: Any, trace: Path | None = None) -> Any:
        """Do the work in this process, which has loaded torch already."""
        started.append(work)
        busy = {} if trace is None else {"gpu_busy": 0.5}
        notes = {"first_image_s": 2.5, **works[work.name](*work.words), **busy}
        return tool["measure"].Outcome(1.0, notes=notes)

    monkeypatch.setattr(tool["processes"].Work, "run", run)
    variants = tool["cases"].CASES["commands"].build(2, small)
    timings = tool["measure"].measure(variants, device="cpu", repeats=1, max_seconds=60)
    assert timings["PseudoLabeler, a list"].notes.keys() == {"first_image_s", "images_per_s"}
    errors = find_errors(variants, is_after=True)
    unchecked = ("adcam evaluate", "adcam compare --table-only")
    assert errors == {name: 0 for name in variants if name not in unchecked}
    for work in started[: len(variants)]:
        if work.results is None:
            continue
        if work.results.is_dir():
            spoil_mask(work.results)
        else:
            entries = [json.loads(line) for line in work.results.read_text().splitlines()]
            entries[0]["boxes"][0][3] -= 3
            work.results.write_text("\n".join(map(json.dumps, entries)))
    for name in errors:
        with pytest.raises(ValueError, match="is not what the reference computes"):
            find_errors({name: variants[name]}, is_after=True)

    (first, *parts) = tool["cases"].CASES["start"].build(3, small).values()
    timings = tool["measure"].measure({"": first}, device="cpu", repeats=1, max_seconds=60)
    assert (timings[""].wall, timings[""].peak_mib) == ([2.5], 1.0)
    assert [part.run().notes for part in parts] == [{"first_image_s": 2.5}] * 3

    on_gpu = tool["cases"].CASES["commands"].build(2, replace(small, device="cuda", scratch=gpu))
    assert on_gpu["adcam boxes"].check.tolerance == tool["cases"].ROUNDED
    assert on_gpu["adcam evaluate"].notes() == {"gpu_busy": 0.5}


def test_what_a_process_took_and_when_its_results_came(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        """if True:
        import json, os, pathlib, sys, time
        trace, name, out = sys.argv[1:]
        assert (trace, name, os.environ["CUDA_VISIBLE_DEVICES"]) == ("", "work", "")
        pathlib.Path(out).mkdir()
        for index in range(3):
            time.sleep(0.2)
            pathlib.Path(out, f"{index}.png").touch()
        print("said")
        print(json.dumps({"peak_mib": 12.5, "notes": {}}))
        """
    )
    monkeypatch.setattr(tool["processes"], "CHILD", child)
    out = tmp_path / "out"
    work = tool["processes"].Work("work", (str(out),), "cpu", out, out)
    for _ in range(2):  # what an earlier run left does not count
        done = work.run()
        assert done.peak_mib == 12.5
        assert 0.2 < done.notes["first_image_s"] < 10 and 0.5 < done.notes["images_per_s"] < 9
    child.write_text("import sys; sys.exit('no memory')")
    with pytest.raises(ValueError, match=r"work .*ended with 1: no memory"):
        work.run()


def test_a_process_says_what_it_took(tool: dict[str, ModuleType], tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", num_train=1, num_val=1, size_hw=(32, 42), seed=0)
    masks = str(tmp_path / "shapes" / "SegmentationClass")
    done = tool["processes"].Work("run_adcam", ("evaluate", masks, "--gt", masks), "cpu").run()
    assert done.peak_mib > 50 and done.notes == {}
    with pytest.raises(ValueError, match=r"run_adcam evaluate ended with 2: .*no such folder"):
        tool["processes"].Work("run_adcam", ("evaluate", "a", "--gt", masks), "cpu").run()


def test_on_a_gpu_masks_of_the_cpu_are_scored_too(
    tool: dict[str, ModuleType],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases, made = tool["cases"], PseudoLabeler.from_checkpoint
    devices: list[str] = []

    def load(*arguments: Any, device: str, **options: Any) -> PseudoLabeler:
        devices.append(device)
        return made(*arguments, device="cpu", **options)

    monkeypatch.setattr(PseudoLabeler, "from_checkpoint", load)
    monkeypatch.setattr(cases, "_network", lambda setting: None)
    setting = cases.Setting("cuda", 1, None, "val", tiny_checkpoint, TINY, None, 0, tmp_path)
    variants = cases.CASES["generate"].build(1, setting)
    assert devices == ["cuda", "cuda", "cuda", "cpu"]
    assert [*variants][3] == "adcam, float32, on the CPU" and variants[[*variants][3]].score


@pytest.mark.checkout
def test_the_tables_of_the_docs_are_what_the_tool_prints(
    tool: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    docs = ROOT / "docs"
    names = ("performance_cpu", "performance_h100", "generate_h100")
    saved = [str(docs / "results" / f"{name}.csv") for name in names]
    assert tool["run"].main(["--tables", *saved]) == 0
    page = (docs / "performance.md").read_text()
    written = [
        page.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0].strip()
        for name in tool["tables"].format_tables([])
    ]
    assert capsys.readouterr().out == "\n\n".join(written) + "\n"


def test_what_was_not_measured_is_called_so(tool: dict[str, ModuleType]) -> None:
    tables = tool["tables"]
    lines = tables.format_operations([]).splitlines()[2:]
    assert len(lines) == len(tables.list_figures())
    for line, figure in zip(lines, tables.list_figures(), strict=True):
        assert line.count("not measured") == 1 + figure.has_graph
    assert all("not measured" in table for table in tables.format_tables([]).values())


def test_tables_read_the_rows_that_the_tool_writes(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, tables = tool["measure"], tool["tables"]
    monkeypatch.setattr(measure, "describe_environment", lambda device: {"commit": "abc"})

    def save(name: str, case: str, size: int, batch: int, **seconds: float) -> Path:
        labels = {"ours": "adcam", "graph": "adcam, as a graph", "rival": "torch.compile, TF32"}
        timings = {labels[key]: measure.Timing([s], [1.0]) for key, s in seconds.items()}
        variants = {label: measure.Variant(lambda: None) for label in timings}
        path = tmp_path / name
        rows = measure.make_rows(case, size, batch, "cuda", variants, timings, {})
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
        return path

    paths = [
        save("both.csv", "refine", 1024, 16, ours=0.002, graph=0.0005, rival=0.006),
        save("ours_alone.csv", "refine", 1024, 16, ours=0.001),
        save("crf.csv", "dense_crf_batch", 3, 32, ours=0.064),
    ]
    lines = tables.format_operations(tables.read_rows(paths)).splitlines()
    # A quotient is of the run that has both, though ours was measured again.
    assert lines[2].endswith("| **3× (2.00, 6.00 ms)** | **12× (0.50 ms)** |")
    (crf,) = [line for line in lines if "per image in batches of 32" in line]
    assert crf.endswith("| ≤ 1.5 ms | 2.00 ms |  |")


def test_tables_of_generate_and_of_commands_keep_to_their_rows(
    tool: dict[str, ModuleType],
) -> None:
    tables = tool["tables"]
    notes = {"images_per_s": "117", "first_image_s": "1.75", "gpu_busy": ""}
    times = {"size": "20", "median_s": "9.96", "cpu_median_s": "12", "peak_mib": "970.0"}
    about = {"commit": "abc", "dtype": "float32", "score": "80.60", **times, **notes}
    rows = [
        {**about, "case": case, "device": device, "variant": f"{case} on {device}"}
        for case in ("generate", "commands", "start", "growth")
        for device in ("cpu", "cuda")
    ]
    rows[3]["gpu_busy"] = "0.625"
    assert tables.format_generate(rows).splitlines()[2:] == [
        "| abc | float32 | generate on cuda | 117 | 1.75 | not measured | 80.60 |"
    ]
    lines = tables.format_commands(rows).splitlines()[2:]
    assert lines[1] == "| commands on cuda | cuda | 20 | 10.0 | 12.0 | 970.0 | 117 | 1.75 | 62 % |"
    assert [line.split(" | ")[0][2:] for line in lines] == [row["variant"] for row in rows[2:6]]


def test_the_figures_time_what_the_cases_have(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, tables = tool["cases"], tool["tables"]
    monkeypatch.setattr(cases, "CRF_HW", (32, 40))
    setting = cases.Setting("cpu", 1, None, "val", None, TINY, None, 0, tmp_path)
    on_gpu = ("refine", "two_hop_walk", "color_diffusion", "dense_crf_batch", "forward")
    on_cpu = ("refine", "forward", "dense_crf")
    for figures, names in ((tables.list_figures(), on_gpu), (tables.list_cpu_figures(), on_cpu)):
        monkeypatch.setattr(cases, "is_gpu", lambda device, names=names: names is on_gpu)
        works = [work for figure in figures for work in (figure.ours, figure.rival) if work]
        assert {work.case.split()[0] for work in works} == set(names)
        for name in names:
            asked = {work.variant for work in works if work.case.split()[0] == name}
            variants = cases.CASES[name].build(SMALL[name], setting)
            assert asked - {"pydensecrf"} <= variants.keys()


def test_tuning_says_where_there_is_no_gpu(
    tool: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool["tune"], "triton_not_supported_reasons", lambda: ["no GPU here"])
    assert tool["tune"].main([]) == 2
    assert capsys.readouterr().err == "nothing to time: no GPU here\n"


def test_tuning_prints_what_to_ship(
    tool: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = tool["tune"]
    monkeypatch.setattr(tune, "triton_not_supported_reasons", lambda: [])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    used: list[Any] = []

    def work_of(name: str, tokens: int, batch: int, device: str) -> Any:
        return lambda: used.append((name, tune._launch.find_tile(name, torch.device("cpu"))))

    def measure(variants: dict[str, Any], **options: Any) -> dict[str, Any]:
        for variant in variants.values():
            variant.run()
        # The second tile is the fastest.
        return {name: tool["measure"].Timing([2.0 - (name == "1")], [0.0]) for name in variants}

    monkeypatch.setattr(tune, "work_of", work_of)
    monkeypatch.setattr(tune, "measure", measure)
    assert tune.main([]) == 0
    tiles = tune._launch.TILES
    for name, listed in tiles.items():
        assert [tile for key, tile in used if key == name] == [*listed] * len(tune.sizes_of(name))
    assert capsys.readouterr().out.endswith(f"    (9, 0): {dict.fromkeys(tiles, 1)},\n")


def test_variants_take_turns_and_each_round_begins_with_another(
    tool: dict[str, ModuleType],
) -> None:
    seen: list[str] = []
    variants = {
        name: tool["measure"].Variant(lambda name=name: seen.append(name)) for name in "abc"
    }
    timings = tool["measure"].measure(variants, device="cpu", repeats=3, max_seconds=60)
    assert "".join(seen) == "abc" + "abc" + "bca" + "cab"
    assert [len(timings[name].wall) for name in "abc"] == [3, 3, 3]
    seen.clear()
    timings = tool["measure"].measure(variants, device="cpu", repeats=1, max_seconds=60)
    assert "".join(seen) == "abc" and len(timings["a"].cpu) == 1


def test_peak_memory_is_what_a_run_adds(tool: dict[str, ModuleType]) -> None:
    kept = np.ones(64 * 2**17)  # 64 MiB that were there before
    variants = {
        "small": tool["measure"].Variant(lambda: None),
        "large": tool["measure"].Variant(lambda: np.ones(96 * 2**17).sum()),  # 96 MiB
        "told": tool["measure"].Variant(lambda: tool["measure"].Outcome(7.5)),
    }
    timings = tool["measure"].measure(variants, device="cpu", repeats=1, max_seconds=60)
    assert kept.size and timings["small"].peak_mib < 16
    if sys.platform == "linux":
        assert 90 < timings["large"].peak_mib < 120
    assert timings["told"].peak_mib == 7.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it without what is inherited")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it(
    tool: dict[str, ModuleType],
) -> None:
    assert tool["child"].read_peak() > 200  # this process has loaded torch
    script = "import child; print(child.read_peak())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    assert 0 < float(done.stdout) < 100


@pytest.mark.checkout
def test_a_row_has_all_that_a_number_depends_on(
    tool: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = tool["cases"].Case(
        "two ways",
        (5,),
        ("tests/test_docs.py",),
        lambda size, setting: {
            "adcam": tool["measure"].Variant(lambda: sum(range(size))),
            "rival": tool["measure"].Variant(lambda: sum(range(10 * size)), score=lambda: 61.25),
        },
    )
    monkeypatch.setattr(tool["run"], "CASES", {"sum": case})
    asked: list[Any] = []
    monkeypatch.setattr(tool["run"], "run_tests", lambda cases, device: asked.append(cases) or [])
    out = tmp_path / "rows.csv"
    arguments = ["--op", "sum", "--sizes", "1000", "--device", "cpu", "--repeats", "3"]
    assert tool["run"].main([*arguments, "--out", str(out)]) == 0
    assert asked == [["sum"]]
    first, second = csv.DictReader(out.read_text().splitlines())
    assert (first["variant"], second["variant"]) == ("adcam", "rival")
    assert (first["times_ours"], second["score"]) == ("1.000", "61.25")
    assert float(second["times_ours"]) > 1
    for key in ("device", "processor", "threads", "torch", "python", "commit", "date", "dtype"):
        assert first[key]
    assert "rival" in capsys.readouterr().out


def test_nothing_is_timed_when_tests_fail(
    tool: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    red = tmp_path / "test_red.py"
    red.write_text("def test_red():\n    assert False\n")

    def build(size: int, setting: object) -> dict[str, Any]:
        raise AssertionError("timed")

    case = tool["cases"].Case("red", (1,), (str(red),), build)
    monkeypatch.setattr(tool["run"], "CASES", {"red": case})
    out = tmp_path / "rows.csv"
    assert tool["run"].main(["--op", "red", "--out", str(out)]) == 1
    assert "nothing is timed: tests fail in" in capsys.readouterr().err
    assert not out.exists()


def test_rivals_compute_what_adcam_computes(
    tool: dict[str, ModuleType], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 13, 8, generator=generator) for _ in range(2))
    for ours, theirs in zip(
        token_attention(q, k, scale=0.4),
        tool["rivals"].explicit_attention(q, k, scale=0.4),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)

    network = load_classifier(tiny_checkpoint).network.eval()
    inputs = torch.randn(1, 3, 48, 64, generator=generator)
    with torch.inference_mode():
        maps = network.token_maps(inputs, layer_sets=[(0, 1, 2)])
    before = [block.attn.fused_attn for block in network.backbone.blocks]
    cam, attn = tool["rivals"].extract_attention(network, inputs)
    assert attn.shape == (3, 1, 2, 13, 13)
    torch.testing.assert_close(cam, maps.cam, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        attn.mean(dim=(0, 2))[:, 1:, 1:], maps.attn_patch2patch[(0, 1, 2)], rtol=1e-4, atol=1e-6
    )
    assert [block.attn.fused_attn for block in network.backbone.blocks] == before


@pytest.mark.parametrize("all_contours", [True, False])
def test_boxes_by_one_opencv_call_a_threshold_count_the_same(
    tool: dict[str, ModuleType], all_contours: bool
) -> None:
    rng = np.random.default_rng(4)
    maps = [np.kron(rng.random((4, 5)) ** 2, np.ones((5, 6))) for _ in range(12)]
    low = rng.integers(0, 8, (12, 1, 2))
    boxes = np.concatenate([low, low + rng.integers(3, 16, low.shape)], axis=2)
    metric = MaxBoxAccuracy(multi_contour=all_contours, step=0.01)
    for score_map, true_boxes in zip(maps, boxes, strict=True):
        metric.update(score_map, true_boxes)
    plain = tool["rivals"].plain_box_accuracy(
        maps, boxes, np.arange(0, 1, 0.01), all_contours=all_contours
    )
    assert 0 < plain < 100
    assert plain == pytest.approx(metric.compute().max_box_acc_v2)


@pytest.mark.skipif(
    available_backends()["pydensecrf"] is not None, reason="pydensecrf is not installed"
)
def test_the_peers_recipe_gives_the_same_mask(
    tool: dict[str, ModuleType], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    make_shapes(tmp_path / "shapes", num_train=1, num_val=1, size_hw=(60, 84), seed=0)
    lists = tmp_path / "shapes" / "ImageSets" / "Segmentation"
    path = tmp_path / "shapes" / "JPEGImages" / f"{(lists / 'val.txt').read_text().strip()}.png"
    labeler = PseudoLabeler.from_checkpoint(
        tiny_checkpoint,
        device="cpu",
        views=TestViews((48, 64), flip=True),
        crf="toco",
        crf_backend="pydensecrf",
        method_options=tool["rivals"].PLAIN,
        rule="constant:0.58",
    )
    for block in labeler.network.backbone.blocks:  # type: ignore[attr-defined]
        block.attn.qkv.weight.data *= 20  # random weights attend to all alike: nothing to compare
    label = labeler(path, labels=["cat", "horse"])
    assert len(np.unique(label.mask)) == 3
    mask = tool["rivals"].peers_recipe(
        labeler.network,
        label.img,
        (0, 2),
        scales=(48, 64),
        flip=True,
        threshold=labeler.options.rule.value,
        crf=partial(tool["rivals"].crf_by_pydensecrf, params=labeler.options.crf),
    )
    values = np.array([0, *(labeler.class_set.mask_values[i] for i in (0, 2))])
    assert (values[mask] == label.mask).mean() > 0.995
