"""The orchestrator on a recipe of three stages: what runs, what is kept, what is noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adcam.errors import AdcamError
from adcam.labeling import locks
from adcam.recipe.stages import (
    Recipe,
    Stage,
    find_damage,
    find_stale,
    read_recipe,
    read_stage,
    report_stage,
    run_stages,
)


@dataclass(frozen=True)
class Cake(Recipe):
    """Dough in slices, baked; a report says how many there are."""

    kind: ClassVar[str] = "cake"

    flour: int = 2
    heat: int = 180
    oven: str | None = None
    killed_at: set[str] = field(default_factory=set)

    @property
    def stages(self) -> Sequence[Stage[Cake]]:
        return STAGES

    def describe(self) -> dict[str, Any]:
        return {"flour": self.flour}


def slices(cake: Cake) -> list[Path]:
    return sorted((cake.folder("dough") / "slices").glob("*.txt"))


def knead(cake: Cake, folder: Path) -> dict[str, Any]:
    for number in range(cake.flour):
        path = folder / "slices" / f"{number}.txt"
        if path.is_file() and path.read_text() == f"slice {number}":
            continue  # what an interrupted run left is kept
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"slice {number}")
        if "dough" in cake.killed_at:
            cake.killed_at.remove("dough")
            raise KeyboardInterrupt
    (folder / "recipe.txt").write_text("flour")
    return {"images": cake.flour}


def bake(cake: Cake, folder: Path) -> dict[str, Any]:
    (folder / "crumbs.log").write_text("not an output")
    (folder / "cake.txt").write_text(" ".join(path.read_text() for path in slices(cake)))
    return {}


def make_report(cake: Cake) -> Path:
    folder = cake.folder("report")
    for name in ("report.html", "report.md", "report.json"):
        (folder / name).write_text(f"{cake.title}: {sorted(find_stale(cake))}")
    (folder / "pictures").mkdir(exist_ok=True)
    return folder / "report.html"


STAGES: tuple[Stage[Cake], ...] = (
    Stage(
        "dough",
        "knead the dough",
        needs=(),
        describe=lambda cake: {"flour": cake.flour},
        files=lambda cake: ["recipe.txt", "slices"],
        run=knead,
        repairs=("slices",),
    ),
    Stage(
        "bake",
        "bake it",
        needs=("dough",),
        describe=lambda cake: {
            "heat": cake.heat,
            "slices": [path.read_text() for path in slices(cake)],
        },
        files=lambda cake: ["cake.txt"],
        run=bake,
        obstacle=lambda cake: cake.oven,
    ),
    report_stage(make_report, needs=("bake",)),
)
ALL = [stage.name for stage in STAGES]


@pytest.fixture
def cake(tmp_path: Path) -> Cake:
    return Cake(tmp_path / "work", "a cake", "bake it")


def run(cake: Cake, **choices: Any) -> tuple[list[str], str]:
    """The stages that ran, and what was logged."""
    lines: list[str] = []
    ran = run_stages(cake, log=lines.append, **choices)
    return ran, "\n".join([*lines, ""])


def test_a_finished_recipe_is_kept_and_its_records_say_what_it_made(cake: Cake) -> None:
    assert run(cake)[0] == ALL
    record = read_stage(cake.folder("dough"))
    assert record is not None
    assert record["outputs"]["images"] == 2
    assert list(record["outputs"]["files"]) == ["recipe.txt", "slices/"]
    assert read_recipe(cake.work_dir)["flour"] == 2
    assert list(cake.finished()) == ["dough", "bake"]
    ran, said = run(cake)
    assert ran == []
    assert said.count("nothing changed, kept") == 3


def test_a_changed_input_is_named_and_starts_over_what_it_changes(cake: Cake) -> None:
    run(cake)
    hotter = replace(cake, heat=200)
    ran, said = run(hotter)
    assert ran == ["bake", "report"]
    assert "· bake: bake it again, changed: heat: 180 -> 200 …" in said
    more = replace(hotter, flour=3)
    assert run(more)[0] == ALL


def test_an_edited_file_of_a_folder_is_named_and_made_again_alone(cake: Cake) -> None:
    run(cake)
    edited, other = slices(cake)
    edited.write_text("mould")
    untouched = other.stat().st_mtime_ns
    assert find_damage(cake.folder("dough")) == ["slices/0.txt has changed since it was written"]
    ran, said = run(cake)
    assert ran == ["dough"]  # which gives the same bytes, so that nothing follows
    assert "dough: knead the dough again, dough/slices/0.txt has changed since it was" in said
    assert edited.read_text() == "slice 0"
    assert other.stat().st_mtime_ns == untouched


def test_a_deleted_file_is_named(cake: Cake) -> None:
    run(cake)
    slices(cake)[1].unlink()
    assert find_damage(cake.folder("dough")) == ["slices/1.txt is gone"]
    assert run(cake)[0] == ["dough"]
    shutil.rmtree(cake.folder("dough") / "slices")
    assert find_damage(cake.folder("dough")) == [f"slices/{i}.txt is gone" for i in range(2)]
    assert run(cake)[0] == ["dough"]


def test_damage_outside_the_folders_that_are_repaired_starts_over(cake: Cake) -> None:
    run(cake)
    (cake.folder("bake") / "cake.txt").write_text("eaten")
    (cake.folder("bake") / "crumbs.log").write_text("edited, but no output")
    ran, said = run(cake)
    assert ran == ["bake"]
    assert "bake/cake.txt has changed since it was written" in said
    assert (cake.folder("bake") / "cake.txt").read_text() == "slice 0 slice 1"

    table = cake.folder("dough") / "files.json"
    table.write_text(table.read_text().replace("0.txt", "9.txt"))
    assert find_damage(cake.folder("dough")) == ["files.json has changed since it was written"]
    table.write_text("[")
    assert run(cake)[0] == ["dough"]
    assert find_damage(cake.folder("dough")) == []


def test_the_damage_of_a_stage_that_is_left_out_is_told(cake: Cake) -> None:
    run(cake)
    slices(cake)[0].write_text("mould")
    ran, said = run(cake, skip=["dough"])
    assert ran == ["bake", "report"]
    assert "dough: left out and taken as it is, though dough/slices/0.txt has changed" in said
    assert find_stale(cake) == {"dough": "dough/slices/0.txt has changed since it was written"}
    assert "['dough']" in (cake.folder("report") / "report.html").read_text()

    slices(cake)[0].unlink()
    with pytest.raises(AdcamError, match=r"dough/slices/0\.txt is gone; run 'dough' too"):
        run(cake, only=["bake"])


def test_an_interrupted_stage_resumes(cake: Cake) -> None:
    cake.killed_at.add("dough")
    with pytest.raises(KeyboardInterrupt):
        run(cake)
    record = read_stage(cake.folder("dough"))
    assert record is not None
    assert record["state"] == "running"
    written = slices(cake)[0].stat().st_mtime_ns
    ran, said = run(cake)
    assert ran == ALL
    assert "dough: resumes where it stopped" in said
    assert slices(cake)[0].stat().st_mtime_ns == written

    # Killed between the renaming of a folder and its removal.
    cake.folder("bake").replace(cake.work_dir / ".bake.discarded")
    assert run(cake)[0] == ["bake"]
    assert not (cake.work_dir / ".bake.discarded").exists()


def test_redo_only_and_skip(cake: Cake) -> None:
    with pytest.raises(AdcamError, match="'bake' needs the result of 'dough', which is left out"):
        run(cake, skip=["dough"])
    with pytest.raises(AdcamError, match=r"no stage 'dogh'; the stages are dough, bake, report"):
        run(cake, only=["dogh"])
    with pytest.raises(AdcamError, match="--redo names stages that are left out: bake"):
        run(cake, redo=["bake"], skip=["bake"])
    assert not cake.work_dir.exists()
    assert run(cake, only=["dough"])[0] == ["dough"]
    assert run(cake, skip=["dough"])[0] == ["bake", "report"]
    ran, said = run(cake, redo=["dough"])
    assert ran == ["dough"]
    assert "dough: knead the dough again, as asked for" in said
    assert find_stale(replace(cake, heat=90)) == {"bake": "changed: heat: 180 -> 90"}


def test_what_cannot_run_here_is_told_before_anything_runs(cake: Cake) -> None:
    cold = replace(cake, oven="there is no oven; pip install oven")
    with pytest.raises(AdcamError, match=r"'bake' cannot run here: there is no oven.*--skip bake"):
        run(cold)
    assert not cake.work_dir.exists()
    assert run(cold, only=["dough"])[0] == ["dough"]


def test_files_of_others_are_not_touched(cake: Cake) -> None:
    folder = cake.folder("dough")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(AdcamError, match=r"dough holds files, but no stage\.json"):
        run(cake)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_two_runs_do_not_work_in_one_folder(cake: Cake) -> None:
    if locks.fcntl is None:
        pytest.skip("this system has no locks")
    cake.work_dir.mkdir()
    lock = locks.FolderLock(cake.work_dir)
    with pytest.raises(AdcamError, match=rf"work is in use by process {os.getpid()}"):
        run(cake)
    assert not cake.folder("dough").exists()
    lock.release()
    cake.killed_at.add("dough")
    with pytest.raises(KeyboardInterrupt):
        run(cake)
    assert run(cake)[0] == ALL
    assert sorted(path.name for path in cake.work_dir.iterdir()) == sorted([*ALL, "recipe.json"])


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", '{"state": "done"}', "[" * 100_000),
        '{"state": "asleep", "inputs": {}, "outputs": {}}',
        '{"state": "running", "inputs": [], "outputs": {}}',
        '{"state": "done", "inputs": {}, "outputs": {}, "seconds": 1}',
        '{"state": "done", "inputs": {}, "outputs": {"files": []}, "seconds": 1}',
        '{"state": "done", "inputs": {}, "outputs": {"files": {}}, "seconds": "long"}',
    ],
)
def test_damaged_records_are_named(cake: Cake, text: str) -> None:
    cake.folder("dough").mkdir(parents=True)
    (cake.folder("dough") / "stage.json").write_text(text)
    with pytest.raises(AdcamError, match=r"stage\.json is damaged \(.*remove .*dough to start"):
        run(cake)
    (cake.work_dir / "recipe.json").write_text(text)
    with pytest.raises(AdcamError, match=r"recipe\.json: not the record of `adcam run`"):
        read_recipe(cake.work_dir)


def test_a_stage_works_within_a_larger_recipe(cake: Cake) -> None:
    @dataclass(frozen=True)
    class Party(Recipe):
        kind: ClassVar[str] = "party"

        @property
        def stages(self) -> Sequence[Stage[Party]]:
            def part(party: Party) -> Cake:
                return Cake(party.work_dir, "part", "", flour=1)

            return tuple(stage.within(part, stage.needs) for stage in STAGES[:2])

        def describe(self) -> dict[str, Any]:
            return {}

    party = Party(cake.work_dir, "a party", "")
    assert run_stages(party, log=lambda line: None) == ["dough", "bake"]
    assert (party.folder("bake") / "cake.txt").read_text() == "slice 0"
    assert json.loads((party.work_dir / "recipe.json").read_text())["recipe"] == "party"
