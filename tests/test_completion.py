"""``adcam completion``: what a shell completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from adcam.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The functions of bash, and one that completes a line and prints what there is."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("adcam.cli.completion.show", printed.append)
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "adcam.sh"
    line = (
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_adcam; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path.write_text("\n".join([*printed, line]) + "\n")
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["adcam", "gen"], {"generate"}),
        (["adcam", "config", "s"], {"show"}),
        (["adcam", "generate", "--engine", ""], {"local", "ray"}),
        (["adcam", "train", "cub/inca_v"], {"cub/inca_vgg16"}),
        (["adcam", "convert", "masks-to-y"], {"masks-to-yolo"}),
        (["adcam", "init", "--im"], {"--images"}),
    ],
)
def test_a_shell_completes(script: Path, words: list[str], expected: set[str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", script, *words], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_read_the_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr()
    assert "adcam" in printed.out and "completion" in printed.err
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(printed.out)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
