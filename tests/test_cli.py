"""The command line: exit codes, messages, and the commands of docs/cli.md."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam import settings as adcam_settings
from adcam.cli import build_parser, info, main, refine
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.errors import AdcamError
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.version import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos, labels, truth and a classifier, as in docs/cli.md."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("beach", "garden", "trip/yard"):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((64, 40), Image.Resampling.BICUBIC).save(path)
        write_mask(
            tmp_path / "truth" / f"{name}.png",
            rng.choice(np.array([0, 8, 12, 255], np.uint8), (40, 64)),
            voc_palette(),
        )
    (tmp_path / "labels.csv").write_text(
        "image_id,labels\nbeach,dog\ngarden,cat horse\ntrip/yard,\n"
    )
    (tmp_path / "classifier.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    return tmp_path


GENERATE = "generate photos --checkpoint classifier.safetensors --out out --scales 64 --device cpu"


def run(command: str) -> int:
    return main(shlex.split(command))


def test_file_names_cannot_steer_the_terminal(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "evil\x1b]0;owned\x07\n\u202egpj"
    (place / "photos" / f"{evil}.jpg").write_text("not a picture")
    (place / "photos" / f"{evil}.psd").write_text("not read")
    assert run(f"{GENERATE} --labels predicted") == 1
    assert main(["evaluate", "out/masks", "--gt", evil]) == 2
    assert main(["convert", "mask-labels", evil, "--out", "labels2.csv"]) == 2
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert printed.count("evil\\x1b]0;owned\\x07") >= 3
    assert not any(char in printed for char in "\x1b\x07\u202e")
    assert main(["generate", "photos", "--out", f"{evil}/x", "--checkpoint", evil]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_results_inside_the_photographs_are_no_input(place: Path) -> None:
    command = GENERATE.replace("--out out", "--out photos/out --labels labels.csv --json {}.json")
    assert [run(command.format(name)) for name in ("first", "second")] == [0, 0]
    first, second = (json.loads((place / f"{n}.json").read_text()) for n in ("first", "second"))
    assert first["ok"] == second["skipped"] == 3
    assert run(GENERATE.replace("--out out", "--out photos --labels predicted")) == 2


def test_the_documented_commands_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    commands = re.findall(r"^\$ adcam ((?:.*\\\n)*.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert run(command.replace("\\\n", " ")) == 0, command
        assert capsys.readouterr().err.splitlines()[-1].startswith("next: "), command


def test_every_command_and_option_of_the_parser_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    subparsers = next(a for a in build_parser()._actions if isinstance(a.choices, dict))
    assert set(subparsers.choices) == {
        *("demo", "train", "calibrate", "generate", "refine", "evaluate", "boxes", "compare"),
        *("segment", "run", "report", "convert", "info", "status", "merge", "verify", "init"),
        *("configs", "config", "import", "completion"),
    }
    for name in subparsers.choices:
        assert f"`adcam {name}" in text, name
    options = re.findall(r"`(--[a-z-]+)", text)
    known = {o for p in subparsers.choices.values() for a in p._actions for o in a.option_strings}
    assert options and set(options) <= known


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys\nfrom adcam.cli import main\n"
        "try:\n    main(['generate', '--help'])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'mmengine', 'rich', 'timm'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert "exit codes" in result.stdout and "--two-threshold LOW HIGH" in result.stdout


def run_afresh(commands: list[str], *heavy: str) -> subprocess.CompletedProcess[str]:
    """Run commands in one new process, which prints their exit codes and what it has loaded."""
    script = (
        "import shlex, sys\nfrom adcam.cli import main\n"
        "codes = [main(shlex.split(line)) for line in sys.stdin.read().splitlines()]\n"
        "print(codes, sorted(set(sys.argv[1:]) & set(sys.modules)))"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *heavy],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_mistakes_are_refused_before_torch_is_imported(place: Path) -> None:
    commands = [
        "generate missing --checkpoint classifier.safetensors --out out",
        "generate photos --checkpoint missing.safetensors --out out",
        "generate photos --out out",
        "generate photos --checkpoint c.safetensors --classes cat --out out",
        "generate photos --checkpoint classifier.safetensors --labels missing.csv --out out",
        "generate photos --checkpoint classifier.safetensors --config missing.py --out out",
        "boxes missing --checkpoint classifier.safetensors --threshold 0.4 --out boxes.csv",
        "evaluate missing --gt truth",
        "evaluate photos --gt missing",
        "evaluate photos --gt truth --ids missing.txt",
        "train missing.py",
        "compare missing.py",
        "run missing.py",
        "convert masks-to-coco missing --out out.json",
        "generate photos --checkpoint classifier.safetensors --out out --method adcam",
        "generate photos --checkpoint classifier.safetensors --out out --scales 0",
        f"{GENERATE} --method-options powr=3",
        f"{GENERATE} --method-options power=-1",
        f"{GENERATE} --method-options power=high",
        f"{GENERATE} --method cam --method-options power=3",
        f"{GENERATE} --method-options layers=lst:2",
        f"{GENERATE} --labels labels.csv".replace("cpu", "gpu"),
        f"{GENERATE} --config cam.toml --method-options box_threshold=2",
        "train voc12/adcam_deit-small --cfg-options train.epoch=3",
        "train voc12/adcam_deit-small --cfg-options data.train=3",
        "evaluate photos --gt truth",
        "evaluate truth --gt photos",
        "train",
        "generate",
        "configs nothing",
        "init --images missing",
        "config show missing",
    ]
    (place / "cam.toml").write_text('[cam]\nmethod = "clip_es_form"\n')
    result = run_afresh(commands, "torch", "numpy", "PIL", "mmengine")
    assert result.stdout == f"{[2] * len(commands)} []\n", result.stderr
    errors = result.stderr.splitlines()
    assert len(errors) == len(commands) and all(": error: " in line for line in errors)


def test_labels_rules_and_sources_are_checked_without_torch(place: Path) -> None:
    (place / "bad.csv").write_text("image_id,labels\nbeach,zebra\n")
    commands = [
        "generate photos --checkpoint classifier.safetensors --out out --labels bad.csv",
        "generate photos --checkpoint classifier.safetensors --out out --threshold 3",
        "generate labels.csv --checkpoint classifier.safetensors --out out",
        "boxes photos --checkpoint classifier.safetensors --labels bad.csv --threshold 0.4 "
        "--out boxes.csv",
        "calibrate photos --checkpoint classifier.safetensors --labels bad.csv",
        "convert masks-to-coco photos --out out.json",
        "convert label-table missing.csv --out out.csv",
        "report truth",
        "init --images photos --backbone deit_tinny_patch16_224",
        "train photos --backbone resnet50",
        "generate photos --model deit_tinny_patch16_224 --classes cat --out out",
        "generate photos --model deit_tiny_patch16_224 --classes catt --out out",
        "generate photos --model vit_base_patch14_dinov2 --classes cat --out out",
        "generate photos --model clip:ViT-B-61 --classes cat --out out",
        "generate photos --model transformers:missing --classes cat --out out",
        "boxes photos --model deit_tiny_patch16_224 --weights missing --classes cat "
        "--threshold 0.4 --out boxes.csv",
        "demo --weights missing --work-dir d",
    ]
    result = run_afresh(commands, "torch", "mmengine", "timm")
    assert result.stdout == f"{[2] * len(commands)} []\n", result.stderr


def test_configs_of_plain_values_are_checked_without_torch(place: Path) -> None:
    (place / "cam.toml").write_text('[cam]\nmethod = "clip_es_form"\n')
    (place / "plain.toml").write_text('[data]\nroot = "photos"\n[model]\nbackbone = "vit"\n')
    changes = ["cam.scal=3", "cam.method_options.power=3", "mask.crf=tocco", "mask.rule=2"]
    commands = [f"{GENERATE} --config cam.toml --cfg-options {change}" for change in changes]
    commands += [f"{command} plain.toml" for command in ("train", "compare", "run")]
    result = run_afresh(commands, "torch")
    assert result.stdout == f"{[2] * len(commands)} []\n", result.stderr


def test_the_core_does_without_any_extra(place: Path) -> None:
    (place / "my.py").write_text("train = dict(epochs=1, img_size=8, batch_size=1)\n")
    works = [
        f"{GENERATE} --labels labels.csv --crf lattice --save-maps",
        f"{GENERATE} --labels labels.csv --threshold otsu".replace("--out out", "--out otsu"),
        "evaluate out --gt truth",
        "evaluate out --gt truth --sweep",
        f"{GENERATE} --labels labels.csv --threshold 0.4".replace(
            "--out out", "--out boxes.csv"
        ).replace("generate", "boxes"),
        "convert masks-to-yolo out/masks --out yolo",
        "info",
    ]
    refused = ["train my.py", "compare my.py", "run my.py"]
    script = (
        "import shlex, sys\n"
        "from adcam.cli import main\n"
        "from adcam.installation import EXTRAS\n"
        "sys.modules.update(dict.fromkeys(EXTRAS))\n"  # None: the import fails
        "codes = [main(shlex.split(line)) for line in sys.stdin.read().splitlines()]\n"
        "print(codes)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join([*works, *refused]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    codes = [0] * len(works) + [2] * len(refused)
    assert result.stdout.splitlines()[-1:] == [str(codes)], result.stderr
    message = "mmengine is not installed; pip install 'adcam[train]'"
    assert [line.partition("error: ")[2] for line in result.stderr.splitlines()[-3:]] == (
        [message] * len(refused)
    )


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["adcam", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("adcam", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"adcam {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(AdcamError("no"), 2), (PermissionError(13, "no"), 2), (KeyboardInterrupt(), 130)],
)
def test_what_the_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    monkeypatch.setattr(info, "run", raising(error))
    assert main(["info"]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("slip"), KeyError("slip"), RuntimeError("slip")])
def test_a_fault_of_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(info, "run", raising(error))
    with pytest.raises(type(error), match="slip"):
        main(["info"])


def raising(error: BaseException) -> Callable[[object], int]:
    def raise_it(args: object) -> int:
        raise error

    return raise_it


def test_classes_with_spaces_are_told_how(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("generate photos --model deit --classes cat dog --out out")
    assert stop.value.code == 2
    assert 'put commas between classes: --classes "cat,dog"' in capsys.readouterr().err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "your own photographs, with" in capsys.readouterr().err


def test_generate_then_evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{GENERATE} --labels labels.csv --save-maps --json run.json") == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == "out/masks" and "3 masks written" in captured.err
    summary = json.loads((place / "run.json").read_text())
    assert summary["ok"] == 3 and summary["failed"] == {}
    assert not read_mask(place / "out" / "masks" / "trip" / "yard.png").any()
    assert run("evaluate out --gt truth --json scores.json") == 0
    printed = capsys.readouterr().out
    scores = json.loads((place / "scores.json").read_text())
    assert f"{scores['miou']:.2f}" in printed and "horse" in printed
    assert run("evaluate out --gt truth --sweep --json curve.json") == 0
    curve = json.loads((place / "curve.json").read_text())
    assert len(curve["miou"]) == 101 and "best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "crf", "backend"),
    [
        ("", "none", None),
        ("--crf", "toco", "lattice"),
        ("--crf irn", "irn", "lattice"),
        ("--crf lattice", "toco", "lattice"),
        ("--crf lattice --crf-params psa", "psa", "lattice"),
        ("--crf psa --crf-params psa --crf-backend lattice", "psa", "lattice"),
        ("--crf-params psa", "none", None),
        ("--config psa.py", "psa", "lattice"),
        ("--config psa.py --crf-params irn", "irn", "lattice"),
        ("--config psa.py --crf lattice", "psa", "lattice"),
        ("--config psa.py --crf none", "none", None),
    ],
)
def test_crf_names_parameters_or_as_before_a_backend(
    place: Path, options: str, crf: str, backend: str | None
) -> None:
    (place / "psa.py").write_text("mask = dict(crf='psa')\n")
    (place / "one.txt").write_text("beach\n")
    assert run(f"{GENERATE} --labels predicted --ids one.txt --workers 0 {options}") == 0
    found = json.loads((place / "out" / "config.json").read_text())["labeler"]
    assert (found["crf"] if crf == "none" else found["crf"]["name"]) == crf
    assert found["crf_backend"] == backend


@pytest.mark.parametrize(
    "options", ["--crf lattice --crf-backend pydensecrf", "--crf irn --crf-params psa"]
)
def test_crf_options_that_contradict_one_another(
    place: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{GENERATE} --labels predicted {options}") == 2
    assert "name two" in capsys.readouterr().err


def test_the_options_of_methods_are_known_without_them() -> None:
    from adcam import method_options
    from adcam.cams import METHODS
    from adcam.ops import common_neighbor, diffusion

    known = method_options.METHOD_OPTIONS
    assert set(known) <= set(METHODS)
    assert set(METHODS) - set(known) <= {"squared"}  # which a docstring adds
    for name, options in known.items():
        assert issubclass(METHODS[name], options)
        assert vars(METHODS[name]()) == vars(options())  # type: ignore[call-arg]
    assert method_options.SIMILARITIES == common_neighbor.SIMILARITIES
    assert method_options.NORMALIZATIONS == diffusion.NORMALIZATIONS


def test_the_command_line_knows_the_crfs_and_the_default_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = adcam_settings.DEFAULT_RULES
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{rules['ad_cam'][0]}; with --method refined {rules['refined'][0]})" in text


def test_options_reach_the_configuration(place: Path) -> None:
    (place / "my.py").write_text(
        "cam = dict(method='ts_cam', scales=[96], flip=True)\n"
        "mask = dict(rule='0.25', chosen_on='my val', crf='psa', crf_backend='lattice')\n"
    )
    common = "generate photos --checkpoint classifier.safetensors --labels predicted --device cpu"
    assert run(f"{common} --out a --config my.py") == 0
    found = json.loads((place / "a" / "config.json").read_text())["labeler"]
    assert (found["method"], found["views"]["scales"]) == ("ts_cam", [96])
    assert (found["rule"], found["chosen_on"]) == ("constant:0.25", "my val")
    assert (found["crf"]["name"], found["crf_backend"]) == ("psa", "lattice")
    assert (
        run(
            f"{common} --out b --config my.py --cfg-options mask.crf=none cam.scales=[64] --no-flip"
            " --method ad_cam --method-options power=1.5 layers=last:1 --threshold power:3"
        )
        == 0
    )
    found = json.loads((place / "b" / "config.json").read_text())["labeler"]
    assert (found["method"], found["method_options"]["power"]) == ("ad_cam", 1.5)
    assert found["views"] == {"scales": [64], "flip": False, "keep_ratio": True}
    assert (found["rule"], found["chosen_on"], found["crf"]) == ("power:3.0", "given", "none")
    assert run(f"{common} --out c --scales 64 --two-threshold 0.2 0.6 --label-threshold 0") == 0
    assert 255 in read_mask(place / "c" / "masks" / "beach.png")


def test_views_of_the_classifier_hold_where_a_config_names_none(
    place: Path, tiny_checkpoint: Path
) -> None:
    found = load_classifier(tiny_checkpoint)
    views = {"scales": [48], "flip": False, "keep_ratio": False}
    save_classifier(
        place / "small.safetensors",
        found.network,
        found.network_options,
        found.class_set,
        {},
        views=views,
    )
    (place / "mask.py").write_text("mask = dict(crf='psa')\n")
    (place / "cam.py").write_text("cam = dict(flip=True)\n")
    common = "generate photos --checkpoint small.safetensors --labels predicted --device cpu"
    for out, more, seen in (
        ("a", "", views),
        ("b", "--config mask.py", views),
        ("c", "--config mask.py --scales 32 --flip", {**views, "scales": [32], "flip": True}),
        ("d", "--config cam.py", {"scales": [448], "flip": True, "keep_ratio": True}),
    ):
        assert run(f"{common} --out {out} {more}") == 0
        assert json.loads((place / out / "config.json").read_text())["labeler"]["views"] == seen


@pytest.mark.parametrize(
    ("changes", "scale", "scales"),
    [
        ([], 64, (48, 64)),
        (["refine.scale=32"], 32, (48, 64)),
        (["cam.scales=[96]"], 448, (96,)),
    ],
)
def test_refine_works_at_the_views_of_the_classifier(
    place: Path, tiny_checkpoint: Path, changes: list[str], scale: int, scales: tuple[int, ...]
) -> None:
    found = load_classifier(tiny_checkpoint)
    path, views = place / "small.safetensors", {"scales": [48, 64], "flip": False}
    save_classifier(path, found.network, found.network_options, found.class_set, {}, views=views)
    settings = refine._load_settings(
        SimpleNamespace(config=None, cfg_options=changes, checkpoint=path)
    )
    assert (settings.refine.scale, settings.cam.views.scales) == (scale, scales)


def test_an_imagenet_model_takes_its_classes_as_labels(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adcam.labeling.labeler import PseudoLabeler

    asked = {}

    def fake(model: str, classes: list[str], **options: object) -> PseudoLabeler:
        asked.update(model=model, classes=classes, weights=options.pop("weights"))
        return PseudoLabeler.from_checkpoint("classifier.safetensors", **options)

    monkeypatch.setattr(PseudoLabeler, "from_imagenet", fake)
    (place / "w.pth").touch()
    command = (
        'generate photos/beach.jpg --model deit_tiny_patch16_224 --classes "tabby cat, dog" '
        "--out out --scales 64 --device cpu --weights w.pth"
    )
    assert run(command) == 0
    assert asked == {
        "model": "deit_tiny_patch16_224",
        "classes": ["tabby cat", "dog"],
        "weights": "w.pth",
    }
    entry = json.loads((place / "out" / "manifest.jsonl").read_text())
    assert entry["classes"] == ["cat", "dog", "horse"] and entry["labels"] == "given"


def test_one_bad_image_is_listed_and_the_exit_code_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "photos" / "bad.jpg").write_text("text")
    assert run(f"{GENERATE} --labels predicted") == 1
    err = capsys.readouterr().err
    assert "1 of 4 images have no mask:\n  bad: photos/bad.jpg: not an image" in err
    assert run(f"{GENERATE} --labels predicted") == 1
    assert "3 of 4 images are done already" in capsys.readouterr().err
    (place / "photos" / "bad.jpg").unlink()
    assert run(f"{GENERATE} --labels predicted") == 0


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage_id,labels\nbeach,dog\ngarden,cat horse\ntrip/yard,\n",
        "image_id,labels\r\nbeach,dog\r\ngarden,cat horse\r\ntrip/yard,\r\n",
        "\ufeffimage_id,labels\r\nbeach.jpg,dog;\r\ngarden.jpg,cat;horse\r\n\r\ntrip/yard.jpg,\r\n",
    ],
    ids=["BOM", "CRLF", "all of it"],
)
def test_labels_of_any_spreadsheet(place: Path, text: str) -> None:
    (place / "labels.csv").write_bytes(text.encode())
    assert run(f"{GENERATE} --labels labels.csv") == 0
    lines = (place / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["classes"] for line in lines] == [["dog"], ["cat", "horse"], []]


def test_labels_of_more_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "image_id,labels\nbeach,dog\ngarden,cat\ntrip/yard,\nmoon,cat\nsun,dog\n"
    (place / "labels.csv").write_text(text)
    assert run(f"{GENERATE} --labels labels.csv") == 0
    assert "2 of 5 labelled ids have no image in photos and are left out: moon, sun" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beach,wolf\n", r"labels\.csv, line 2: unknown class 'wolf'; legal are cat, dog, horse"),
        ("beach,dog\nbeach.jpg,cat\n", r"labels\.csv, line 3: image id 'beach' is already on"),
        ("beach,dog\n", r"2 of 3 images have no labels: garden, trip/yard\..*--labels predicted"),
        ("moon,cat\n", r"labels\.csv: none of the 1 labelled ids has an image in photos: got moon"),
    ],
)
def test_wrong_labels(
    place: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (place / "labels.csv").write_text("image_id,labels\n" + text)
    assert run(f"{GENERATE} --labels labels.csv") == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and len(err.splitlines()) == 1
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate photos --out out", "either --checkpoint FILE or --model"),
        ("generate photos --out out --model deit_tiny_patch16_224", "--model needs --classes"),
        (f"{GENERATE} --classes cat", "go with --model"),
        ("generate photos --out out --checkpoint nothing.safetensors", "no such checkpoint"),
        (GENERATE.replace("photos", "nothing"), "no such image, list or folder"),
        (GENERATE, "3 of 3 images have no labels"),
        (f"{GENERATE} --labels nothing.csv", "nothing.csv"),
        (
            f"{GENERATE} --labels predicted --method gradcam",
            "--method must be 'cam'",
        ),
        (f"{GENERATE} --labels predicted --method-options power", "--method-options takes key=val"),
        (f"{GENERATE} --labels predicted --threshold high", "background rule must be"),
        (f"{GENERATE} --labels predicted --cfg-options a=1", "name one with --config"),
        (f"{GENERATE} --labels predicted --config nothing.py", "no such config"),
        (f"{GENERATE} --labels predicted --ids nothing.txt", "nothing.txt"),
        (f"{GENERATE} --labels predicted --voc-split train", "is no VOC root"),
        ("evaluate truth", "give the ground truth with --gt GT_DIR or --metadata DIR"),
        ("evaluate nothing --gt truth", "no such folder"),
        ("evaluate truth --gt truth --largest-contour", "nothing reads --largest-contour"),
        ("evaluate truth --gt truth --sweep --pred-ignore drop", "nothing reads --pred-ignore"),
        ("evaluate truth --sweep --values 1=2", "no --gt, nothing reads --values"),
        ("evaluate truth --gt truth --sweep --average per_image", "take union or gt_present"),
        ("evaluate photos --gt truth", "there are no .png files in this folder; 3 files are"),
        ("evaluate truth --gt truth --sweep", "there are no .npz files in this folder"),
        ("evaluate truth --gt truth --sweep", "`adcam generate --save-maps` stores"),
        ("train nothing.py", "no such config"),
        ("run truth", "this is a folder, and a config is a .py file"),
        ("generate photos --out out --checkpoint truth", "this is a folder, name the file in it"),
        ("report truth", "recipe.json: not the record of `adcam run`"),
        ("train my.py --cfg-options epochs", "--cfg-options takes key=value"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    (place / "my.py").write_text("train = dict(epochs=1, img_size=8, batch_size=1)\n")
    assert run(command) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith(f"adcam {command.split()[0]}: error: ")
    assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    "command", ["boxes", "generate photos --out out --crf maybe", "fly", "evaluate"]
)
def test_wrong_usage_exits_with_2(place: Path, command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("init --imags photos", "unrecognized arguments: --imags; did you mean --images?"),
        ("generate photos --out out --treshold 1", "--treshold 1; did you mean --threshold?"),
        ("segment check my.py --cfg-opions=a", "did you mean --cfg-options?"),
        ("convert label-table a.csv --out b.csv --overwrit --clases a", "mean --classes?"),
        ("info --qqqq", "see adcam info --help"),
        ("boxes --out boxes.csv", "required: --threshold, IMAGES; see adcam boxes --help"),
        ("convert mask-to-coco a --out b.json", "did you mean masks-to-coco?"),
        ("segment chek my.py", "did you mean check?"),
    ],
)
def test_unknown_options_are_told_by_their_command(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(command)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err
    assert err.startswith(f"adcam {command.split()[0]}") and len(err.splitlines()) == 1


def test_debug_shows_the_traceback(place: Path) -> None:
    with pytest.raises(AdcamError, match="no such checkpoint"):
        run("generate photos --out out --checkpoint nothing.safetensors --debug")


def test_another_configuration_is_refused_with_a_diff(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{GENERATE} --labels labels.csv") == 0
    masks = {p: p.read_bytes() for p in (place / "out").rglob("*.*")}
    capsys.readouterr()
    assert run(f"{GENERATE} --labels labels.csv --threshold 0.7 --flip") == 2
    err = capsys.readouterr().err
    assert 'labeler.rule: "steepest:0.56" -> "constant:0.7"' in err
    assert "labeler.views.flip: false -> true" in err and "--overwrite" in err
    assert {p: p.read_bytes() for p in (place / "out").rglob("*.*")} == masks
    assert run(f"{GENERATE} --labels labels.csv --threshold 0.7 --flip --overwrite") == 0


def test_a_folder_that_cannot_be_written_to(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out").write_text("a file, which even root cannot write into")
    assert run(f"{GENERATE} --labels predicted") == 2
    assert "cannot write into the folder out" in capsys.readouterr().err
    assert run(f"{GENERATE} --labels predicted".replace("--out out", "--out out/deeper")) == 2
    assert (place / "out").read_text().startswith("a file")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out").mkdir(mode=0o500)
    assert run(f"{GENERATE} --labels predicted") == 2
    assert "Permission denied" in capsys.readouterr().err


def test_masks_that_are_missing_or_of_another_size(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{GENERATE} --labels labels.csv") == 0
    (place / "out" / "masks" / "beach.png").unlink()
    capsys.readouterr()
    assert run("evaluate out --gt truth") == 2
    assert "lacks 1 of 3 images: beach" in capsys.readouterr().err
    assert run("evaluate out --gt truth --allow-missing --json s.json") == 0
    assert json.loads((place / "s.json").read_text())["missing_predictions"] == ["beach"]
    assert "1 images without a prediction" in capsys.readouterr().err
    (place / "ids.txt").write_text("garden\n")
    assert run("evaluate out --gt truth --ids ids.txt") == 0
    write_mask(place / "truth" / "garden.png", np.zeros((64, 40), np.uint8), voc_palette())
    capsys.readouterr()
    assert run("evaluate out --gt truth --ids ids.txt") == 2
    assert "out/masks/garden.png has 40×64" in capsys.readouterr().err


def test_info_prints_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["crf_backends"]["reference"] is None
    assert list(found["crf_backends"]) == ["numba", "reference", "triton", "torch", "pydensecrf"]
    assert run("info") == 0
    printed = capsys.readouterr().out
    assert "The CRF lattice uses numba" in printed
    assert found["versions"]["torch"] in printed


def test_train_and_demo_pass_their_arguments_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adcam.recipe import stages
    from adcam.training import classifier

    calls: list[tuple[object, ...]] = []

    def fake_train(cfg: object, work_dir: Path, *, resume: bool, launcher: str) -> Path:
        calls.append((cfg.train.epochs, work_dir, resume, launcher))  # type: ignore[attr-defined]
        return work_dir / "classifier.safetensors"

    def fake_stages(recipe: Any, **choices: object) -> None:
        calls.append((recipe.work_dir, recipe.options, recipe.command, choices))

    monkeypatch.setattr(classifier, "train_classifier", fake_train)
    monkeypatch.setattr(stages, "run_stages", fake_stages)
    (place / "my.py").write_text("train = dict(epochs=1, img_size=8, batch_size=1)\n")
    assert run("train my.py --cfg-options train.epochs=7 --resume") == 0
    assert "classifier: work_dirs/my/classifier.safetensors" in capsys.readouterr().out
    (place / "w.pth").touch()
    assert run("demo --quick --work-dir d --weights w.pth --redo network") == 0
    options = {"task": "segmentation", "quick": True, "weights": "w.pth", "from_scratch": False}
    choices = {"only": [], "skip": [], "redo": ["network"]}
    assert calls == [
        (7, Path("work_dirs/my"), True, "none"),
        (Path("d"), options, "adcam demo --quick", choices),
    ]
    assert capsys.readouterr().out == ""  # nothing has finished


def test_compare_passes_its_arguments_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adcam.recipe import compare, stages

    calls: list[Any] = []

    def fake_open(settings: Any, work_dir: Path, **options: Any) -> Any:
        calls.append((settings.compare.report_on, work_dir, options))
        return SimpleNamespace(is_done=lambda stage: False, page=work_dir / "report.html")

    monkeypatch.setattr(compare, "open_comparison", fake_open)
    monkeypatch.setattr(stages, "run_stages", lambda recipe, **choices: calls.append(choices))
    (place / "my.py").write_text(
        "compare = dict(choose_on='a', report_on='b', rows=[dict(name='c', method='cam')])\n"
    )
    assert run("compare my.py --table-only --redo compare") == 0
    options = {
        "title": "my: methods side by side",
        "command": "adcam compare my.py --work-dir work_dirs/my",
        "table_only": True,
    }
    assert calls.pop() == {"only": [], "skip": ["report"], "redo": ["compare"]}
    assert calls.pop() == ("b", Path("work_dirs/my"), options)
    assert run("compare my.py --work-dir w --cfg-options compare.report_on=d") == 0
    options = {
        "title": "my: methods side by side",
        "command": "adcam compare my.py --work-dir w --cfg-options compare.report_on=d",
        "table_only": False,
    }
    assert calls == [("d", Path("w"), options), {"only": [], "skip": [], "redo": []}]


def test_a_config_of_this_project_is_found_by_name(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adcam.training import classifier

    calls = []

    def fake_train(cfg: object, work_dir: Path, **options: object) -> Path:
        calls.append((cfg.train.epochs, work_dir))  # type: ignore[attr-defined]
        return work_dir

    monkeypatch.setattr(classifier, "train_classifier", fake_train)
    assert run("train voc12/adcam_deit-small_60e_voc12") == 0
    assert run("train configs/voc12/adcam_deit-small_60e_voc12.py --work-dir w") == 0
    # A file of the user's own goes first.
    own = place / "voc12" / "adcam_deit-small_60e_voc12.py"
    own.parent.mkdir()
    own.write_text("train = dict(epochs=1, img_size=8, batch_size=1)\n")
    assert run("train voc12/adcam_deit-small_60e_voc12.py") == 0
    default = Path("work_dirs/adcam_deit-small_60e_voc12")
    assert calls == [(60, default), (60, Path("w")), (1, default)]
    capsys.readouterr()
    assert run("train voc12/adcam_deit-smal_60e_voc12") == 2
    assert "did you mean voc12/adcam_deit-small_60e_voc12" in capsys.readouterr().err


def test_tools_train_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
    assert stop.value.code == 0
    assert "usage: adcam train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("launcher", "arguments", "request_", "command", "started_by"),
    [
        ("dist_train.sh", "my.py 2", "--nproc-per-node 2", "train", "pytorch"),
        ("dist_segment.sh", "my.py 2", "--nproc-per-node 2", "segment train", "pytorch"),
        ("slurm_train.sh", "gpus job my.py", "--partition gpus --job-name job", "train", "slurm"),
        ("slurm_segment.sh", "gpus job my.py", "--ntasks 8", "segment train", "slurm"),
    ],
)
def test_launchers_start_the_command(
    tmp_path: Path, launcher: str, arguments: str, request_: str, command: str, started_by: str
) -> None:
    for name in ("torchrun", "srun"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0 $@"\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools" / launcher, *arguments.split(), "--work-dir", "a b"],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, _, words = done.stdout.partition(" -m adcam ")
    assert f"{request_} " in f"{before} "
    args = build_parser().parse_args(words.replace("a b", "work").split())
    assert (args.command, args.config, args.launcher) == (command, Path("my.py"), started_by)
    assert args.work_dir == Path("work")
