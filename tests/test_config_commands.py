"""``adcam configs`` and ``adcam config show``: what comes with adcam, and what it comes to."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from adcam.cli import main
from adcam.errors import AdcamError
from adcam.installation import (
    find_config,
    find_config_command,
    list_configs,
    read_summary,
    shorten_config_name,
)


def test_every_config_has_a_short_name_of_its_own_and_a_line() -> None:
    configs = list_configs()
    assert len(configs) > 40
    assert len({shorten_config_name(name) for name in configs}) == len(configs)
    for name, path in configs.items():
        assert find_config(name) == find_config(shorten_config_name(name)) == path
        assert 5 < len(read_summary(path)) < 200, name
    commands = {find_config_command(name, path) for name, path in configs.items()}
    assert commands == {"train", "compare", "run", "segment train"}


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(AdcamError, match="did you mean voc12/adcam_deit-small"):
        find_config("voc12/adcam_deit-smal")
    with pytest.raises(AdcamError, match="`adcam configs` lists; `adcam init` writes one"):
        find_config("q")


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("# One thing. Another.\na = 1\n", "One thing"),
        ("# A network: how it is trained\n# on what.\n", "A network"),
        (
            "# `adcam demo`: small (arXiv 1.2) and\n# quick; no more\n",
            "`adcam demo`: small (arXiv 1.2) and quick",
        ),
        ("a = 1\n# later\n", ""),
    ],
)
def test_the_line_is_the_first_sentence(tmp_path: Path, text: str, summary: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert read_summary(tmp_path / "a.py") == summary


def test_configs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "VOC12"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert all("voc12" in line.lower() for line in lines)
    assert any(
        line.split("  ")[0] == "voc12/adcam_deit-small" and line.endswith("(train)")
        for line in lines
    )
    assert printed.err.startswith("next: adcam config show ")
    assert main(["configs", "no such thing"]) == 2


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "voc12/adcam_deit-small --cfg-options train.epochs=7",
            ["  epochs = 7\n      How many times all", "[mask]", "  crf = 'none'", "(default)"],
        ),
        ("seg/voc12/deeplabv2_r101", ["  max_iters = 20000\n", "model.decode_head.type = "]),
        ("voc_animals/adcam_deit-tiny --section compare", ["  rows = ['CAM', 'TS-CAM', "]),
        ("cub/inca_vgg16 --section inca", ["[inca]"]),
    ],
)
def test_a_config_is_shown(
    command: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", *shlex.split(command)]) == 0
    printed = capsys.readouterr()
    assert [text for text in expected if text not in printed.out] == []
    assert ":data:" not in printed.out and "``" not in printed.out
    assert printed.err.startswith("next: adcam ")


def test_a_section_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "voc12/adcam_deit-small", "--section", "trian"]) == 2
    assert "there is no section 'trian'; there are" in capsys.readouterr().err
