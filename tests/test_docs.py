"""What the documentation shows works: code runs, commands parse, names and files exist."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cams import build_method
from adcam.cli import build_parser
from adcam.data.dataset import build_class_set
from adcam.data.sources import build_dataset
from adcam.installation import find_config
from adcam.masks.background import parse_rule
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.overrides import parse_overrides
from adcam.settings import SegmentationSettings, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "adcam/**/README.md")
    for path in sorted(ROOT.glob(pattern))
]
PEERS = ("pytorch_grad_cam", "torchcam", "transformers", "open_clip", "datasets")
SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line it starts on."""

    language: str
    text: str
    line: int


def find_blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, also those inside lists."""
    blocks, start, language, indent = [], 0, "", ""
    lines = page.splitlines()
    for number, line in enumerate(lines, start=1):
        fence = re.fullmatch(r"(\s*)```(\w*)\s*", line)
        if not fence:
            continue
        if not start:
            start, indent, language = number, fence[1], fence[2]
        else:
            inside = (text.removeprefix(indent) for text in lines[start : number - 1])
            blocks.append(Block(language, "\n".join(inside) + "\n", start))
            start = 0
    if start:
        raise ValueError(f"the block that opens on line {start} is not closed")
    return blocks


def without_blocks(page: str) -> str:
    """A page less its fenced blocks."""
    return re.sub(r"(?ms)^\s*```.*?^\s*```\s*?$", "", page)


def find_commands(block: Block) -> Iterator[list[str]]:
    """Words of every command of a shell block; continued lines are joined, assignments dropped.

    Where lines begin with ``$``, the others are what the commands print.
    """
    lines = block.text.replace("\\\n", " ").splitlines()
    for line in [line for line in lines if line.startswith("$ ")] or lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words


def section(page: str, title: str) -> str:
    """Text below a second-level heading."""
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def pages_with(*languages: str) -> list[Path]:
    return [p for p in PAGES if any(b.language in languages for b in find_blocks(read(p)))]


def test_blocks_commands_and_links_are_found() -> None:
    page = (
        "# A page\n[a](b.md)\n\n"
        "```sh\n$ X=1 adcam info --json  # why\nit's\n$ make \\\n  test\n```\n\n"
        "1. item\n   ```python\n   if x:\n       y = [a](c.md)\n   ```\n"
    )
    shell, python = find_blocks(page)
    assert shell.line == 4
    assert list(find_commands(shell)) == [["adcam", "info", "--json"], ["make", "test"]]
    assert (python.language, python.text) == ("python", "if x:\n    y = [a](c.md)\n")
    assert find_links(page) == ["b.md"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the examples name: pictures, labels, masks, a classifier."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("rex", "sofa"):
        pixels = generator.integers(0, 256, (30, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.jpg")
    (photos / "labels.csv").write_text("image_id,labels\nrex.jpg,dog\nsofa.jpg,cat dog\n")
    (photos / "train.txt").write_text("rex\n")
    (photos / "val.txt").write_text("sofa\n")
    options = {
        "backbone": "vit_tiny_patch16_224",
        "img_size": 224,
        "backbone_kwargs": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    }
    torch.manual_seed(0)
    network = TokenCAM(num_fg_classes=2, **options)  # type: ignore[arg-type]
    classes = build_class_set("photos", ["cat", "dog"])
    save_classifier(tmp_path / "work" / "classifier.safetensors", network, options, classes, {})
    return tmp_path


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_runs(page: Path, desk: Path) -> None:
    text = read(page)
    if ">>>" in text:
        result = doctest.testfile(str(page), module_relative=False)
        assert (result.attempted > 0, result.failed) == (True, 0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in find_blocks(text):
        if block.language != "python" or ">>>" in block.text:
            continue
        if "_base_" in block.text:
            check_config(block, desk)
            continue
        # Blank lines in front, so that a traceback names the line of the page.
        code = "\n" * block.line + block.text
        try:
            exec(compile(code, name_of(page), "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name not in PEERS:
                raise
            pytest.skip(f"{error.name} is not installed (extra `peers`)")


def check_config(block: Block, desk: Path) -> None:
    """A config of the documentation can be read, has what training asks for, and finds its data."""
    path = desk / "example.py"
    path.write_text(block.text)
    is_network = "train_pipeline" in block.text or "decode_head" in block.text
    settings: Settings | SegmentationSettings = load_settings(
        path, kind=SegmentationSettings if is_network else Settings
    )
    for section in ("data", "model", "train", "optim_wrapper", "param_scheduler"):
        assert section in settings
    for split in (*settings.data.train, str(settings.data.val)):
        images = build_dataset(settings.data, split)
        assert all(record.class_ids is not None for record in images.records)


@pytest.mark.parametrize("page", pages_with(*SHELLS), ids=name_of)
def test_commands_parse(page: Path) -> None:
    text = read(page)
    makefile = read(ROOT / "Makefile")
    for block in find_blocks(text):
        if block.language not in SHELLS:
            continue
        for words in find_commands(block):
            if words[0] == "make":
                for target in (w for w in words[1:] if "=" not in w and not w.startswith("-")):
                    assert re.search(rf"(?m)^{re.escape(target)}:", makefile), words
            for script in (w for w in words if w.startswith("tools/")):
                assert (ROOT / script).is_file(), words
            if words[0] == "adcam":
                check_command(words[1:], text)
            elif "-m adcam " in " ".join(words):
                check_command(words[words.index("adcam") + 1 :], text)


def check_command(words: list[str], page: str) -> None:
    try:
        args = build_parser().parse_args(words)
    except SystemExit as stop:
        assert stop.code == 0, f"adcam {shlex.join(words)} does not parse"  # 0: --help, --version
        return
    config = getattr(args, "config", None)
    # `adcam train photos` makes a project of a folder of photographs, and a page may show how a
    # config is written; others are of this repository, by path or by name.
    is_photographs = (args.command, config) == ("train", Path("photos"))
    if config is not None and not is_photographs and f"`{config}`" not in page:
        path = find_config(ROOT / config if (ROOT / config).is_file() else config)
        kind = SegmentationSettings if args.command.startswith("segment") else Settings
        load_settings(path, parse_overrides(args.cfg_options), kind=kind)
    if getattr(args, "threshold", None):
        parse_rule(args.threshold)
    if getattr(args, "method", None) or getattr(args, "method_options", None):
        build_method(args.method or "ad_cam", **parse_overrides(args.method_options or []))


@pytest.mark.checkout
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in find_links(read(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(read(target))):
            broken.append(link)
    assert broken == []


def find_links(page: str) -> list[str]:
    """Relative targets of links and pictures."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: str) -> set[str]:
    """What a link can name behind ``#``: headings, in lower case, spaces as hyphens."""
    titles = re.findall(r"(?m)^#+ (.+)$", without_blocks(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def prose(page: Path) -> str:
    """A page less its blocks and less what it says is planned."""
    text = read(page)
    if page == ARCHITECTURE:
        text = text.replace(section(text, "Planned"), "")
    return without_blocks(text)


@pytest.mark.checkout
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_text_exist(page: Path) -> None:
    text = prose(page)
    names = re.findall(r"`(adcam(?:\.\w+)+)`", text.replace("`adcam.toml`", ""))
    paths = re.findall(r"`((?:adcam|configs|docs|tests|tools)/[\w./-]*)`", text)
    assert [name for name in names if not resolves(name)] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if attribute not in fields and not hasattr(found, attribute):
                return False
            found = getattr(found, attribute, None)
        return True
    return False


def test_names_that_do_not_exist_are_noticed() -> None:
    assert resolves("adcam.cams.ad_cam.ADCAM")
    assert resolves("adcam.structures.TokenMaps.logits")
    assert not resolves("adcam.cams.ad_cam.NOTHING")
    assert not resolves("adcam.nothing")


def read_tree() -> list[str]:
    """Paths that the tree of docs/architecture.md names, folders with a slash at the end.

    A line is one or several names, two spaces, and what they are; indentation is depth.
    """
    text = section(read(ARCHITECTURE), "Where everything is")
    (block,) = (block for block in find_blocks(text) if block.language == "text")
    paths, folders = [], [""]
    for line in block.text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        paths += [folders[depth] + name for name in names]
        if names[0].endswith("/"):
            folders[depth + 1 :] = [folders[depth] + names[0]]
    return paths


@pytest.mark.checkout
def test_tree_names_what_is_there() -> None:
    paths = read_tree()
    assert len(paths) == len(set(paths)) > 50
    wrong = [
        p for p in paths if not ((ROOT / p).is_dir() if p[-1] == "/" else (ROOT / p).is_file())
    ]
    assert wrong == []


@pytest.mark.checkout
def test_tree_names_all_there_is() -> None:
    named = read_tree()
    operations = {p for p in named if p.startswith("adcam/ops/") and p != "adcam/ops/"}
    unnamed = [
        path
        for path in map(name_of, sorted(ROOT.glob("adcam/**/*.py")))
        if path not in named
        and not Path(path).name.startswith("_")
        and not any(path.startswith(folder) for folder in operations)
    ]
    scripts = [name_of(path) for path in sorted((ROOT / "tools").glob("*.py"))]
    configs = [f"{name_of(p)}/" for p in sorted((ROOT / "configs").iterdir()) if p.is_dir()]
    unnamed += [path for path in (*scripts, *configs) if path not in named]
    assert unnamed == []


def test_what_is_planned_is_not_there_yet() -> None:
    text = section(read(ARCHITECTURE), "Planned")
    planned = [p for p in re.findall(r"`(adcam/[\w./]+)`", text) if p != "adcam/ops"]
    assert planned
    assert [path for path in planned if (ROOT / path).exists()] == []
