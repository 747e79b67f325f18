"""The orchestrator that every recipe runs on.

A recipe is a folder and a list of stages. Each stage owns the folder of its name and records there,
in ``stage.json``, the inputs it was made from and the hash of every file it made. A stage is kept
as long as its inputs and its files are the same, resumes where it was interrupted, and runs again
when something changed. Later stages follow the same rule, so that a stage that runs again and
writes the same bytes changes nothing after it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.console import Console

from adcam.errors import AdcamError
from adcam.files import hash_values, open_json, to_plain, write_json
from adcam.installation import describe_machine, read_versions
from adcam.labeling.locks import hold_folder
from adcam.labeling.output_folder import diff_configs
from adcam.recipe import NO_RECORD, RECIPE_NAME
from adcam.recipe.inputs import hash_once
from adcam.recipe.memory import peak_memory
from adcam.report.explorer import EXPLORER_DIR
from adcam.version import __version__

STAGE_NAME = "stage.json"
FILES_NAME = "files.json"
"""Hashes of the files in a stage's folders, such as ``masks``, one by one."""

REPORT = "report"
"""The name of the stage that writes the report."""

_SHOWN_CHANGES = 5

Values = Mapping[str, Any]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """A folder that stages fill; each kind of recipe adds what its stages read.

    Attributes:
        work_dir: The folder that holds one folder for each stage.
        title: The title of the report.
        command: The command line that makes everything again; the report shows it.
    """

    kind: ClassVar[str]

    work_dir: Path
    title: str
    command: str

    @property
    def stages(self) -> Sequence[Stage[Any]]:
        """The stages in the order in which they run."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What ``recipe.json`` holds beside title and command: enough to open the recipe again."""
        raise NotImplementedError

    def folder(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.work_dir / stage

    @property
    def page(self) -> Path:
        """The page of the report, which need not be there yet."""
        return self.folder(REPORT) / "report.html"

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return _read_finished(self.folder(stage)) is not None

    def finished(self) -> dict[str, Values]:
        """The content of ``stage.json`` of each finished stage but the report, by name."""
        names = [stage.name for stage in self.stages if stage.name != REPORT]
        records = {name: _read_finished(self.folder(name)) for name in names}
        return {name: record for name, record in records.items() if record is not None}

    def outputs(self, stage: str) -> Values:
        """What a finished stage recorded: its values, and under ``files`` the hashes of its files.

        Raises:
            AdcamError: The stage has not finished.
        """
        record = _read_finished(self.folder(stage))
        if record is None:
            raise AdcamError(f"{self.folder(stage)}: the stage {stage!r} has not finished")
        outputs: Values = record["outputs"]
        return outputs


R = TypeVar("R", bound=Recipe)
S = TypeVar("S", bound=Recipe)


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step of a recipe.

    Attributes:
        name: The name of the stage and of its folder. A stage of several parts has a path, such as
            ``"seed-1/train"``; each part of it names the stage too.
        title: A few words that the terminal shows while the stage runs.
        needs: The stages whose results this one reads.
        describe: Returns everything that changes what the stage makes, as JSON values.
        files: Returns the names of the files and folders that the stage leaves in its folder.
        run: Does the work in the stage's folder and returns values to record, as JSON values;
            what it records under ``times`` is no result.
        repairs: The folders among ``files`` in which running again makes only the damaged files
            again. Any other damage makes the stage start over in an empty folder.
        obstacle: Returns why the stage cannot run on this machine, or ``None`` if it can.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    describe: Callable[[R], dict[str, Any]]
    files: Callable[[R], Sequence[str]]
    run: Callable[[R, Path], dict[str, Any]]
    repairs: tuple[str, ...] = ()
    obstacle: Callable[[R], str | None] = lambda recipe: None

    def within(self, part: Callable[[S], R], needs: Sequence[str], folder: str = "") -> Stage[S]:
        """The same stage in a larger recipe, in whose folder it works.

        Args:
            part: Returns the recipe of this stage from the larger one.
            needs: What the stage needs there.
            folder: The folder of this stage's recipe below the larger one's, if it is another; it
                comes before the name, as in ``"seed-1/train"``.
        """
        return Stage(
            f"{folder}/{self.name}" if folder else self.name,
            self.title,
            tuple(needs),
            lambda recipe: self.describe(part(recipe)),
            lambda recipe: self.files(part(recipe)),
            lambda recipe, folder: self.run(part(recipe), folder),
            self.repairs,
            lambda recipe: self.obstacle(part(recipe)),
        )


def run_stages(
    recipe: Recipe,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    redo: Sequence[str] = (),
    is_part: bool = False,
    log: Log | None = None,
) -> list[str]:
    """Run every stage that has no result yet, or whose result no longer fits its inputs.

    Args:
        recipe: What to run.
        only: Names of the only stages to look at; none means all. ``"train"`` and ``"seed-1"`` each
            name ``"seed-1/train"`` with all others of which they are a part.
        skip: Names of stages to leave as they are, up to date or not.
        redo: Names of stages that start over whatever they hold.
        is_part: Whether the recipe is a stage of another one, which can be opened again; this one
            writes no ``recipe.json`` then.
        log: Called with a line about every stage; by default the line goes to standard error.

    Returns:
        The names of the stages that ran.

    Raises:
        AdcamError: A name is unknown, a stage lacks the result of one that is left out, a stage
            cannot run on this machine, another process works in the folder, or a folder holds
            files that no stage made.
    """
    log = log or partial(Console(stderr=True, highlight=False).print, soft_wrap=True, markup=False)
    chosen = _choose(recipe, only, skip, redo)
    _check_left_out(recipe, chosen, log)
    _check_obstacles(recipe, chosen)
    with hold_folder(recipe.work_dir):
        if not is_part:
            head = {"adcam": __version__, "recipe": recipe.kind}
            words = {"title": recipe.title, "command": recipe.command}
            write_json(recipe.work_dir / RECIPE_NAME, {**head, **words, **recipe.describe()})
        return [s.name for s in chosen if _run_stage(recipe, s, _is_named(s, redo), log)]


def report_stage(make: Callable[[R], Path], needs: Sequence[str]) -> Stage[R]:
    """The last stage of every recipe: the report of what the others left.

    Args:
        make: Writes the report into the folder ``report`` without running a network.
        needs: The stages that the report cannot do without.
    """

    def describe(recipe: R) -> dict[str, Any]:
        stages = {}
        for name, record in recipe.finished().items():
            outputs = {key: value for key, value in record["outputs"].items() if key != "times"}
            stages[name] = hash_values({"inputs": record["inputs"], "outputs": outputs})
        head = {"title": recipe.title, "command": recipe.command}
        return {**head, "stale": find_stale(recipe), "stages": stages}

    def run(recipe: R, folder: Path) -> dict[str, Any]:
        make(recipe)
        return {}

    def files(recipe: R) -> list[str]:
        always = ["report.html", "report.md", "report.json", "pictures"]
        has_explorer = (recipe.folder(REPORT) / EXPLORER_DIR).is_dir()
        return [*always, *([EXPLORER_DIR] if has_explorer else [])]

    return Stage(REPORT, "write the report", tuple(needs), describe, files, run)


def remake_report(recipe: Recipe) -> Path:
    """Make the report of a recipe again from what its other stages left.

    Args:
        recipe: The recipe.

    Returns:
        The path of ``report.html``.

    Raises:
        AdcamError: The stages that the report needs have not finished, or their files are gone.
    """
    run_stages(recipe, only=[REPORT], redo=[REPORT])
    return recipe.page


def read_recipe(work_dir: str | Path) -> Values:
    """The content of ``recipe.json``, from which a recipe is opened again.

    Raises:
        AdcamError: The folder holds no recipe, or the file is damaged.
    """
    if not (Path(work_dir) / RECIPE_NAME).exists():
        raise AdcamError(f"{Path(work_dir) / RECIPE_NAME}: {NO_RECORD}: there is no such file")
    with open_json(Path(work_dir) / RECIPE_NAME, NO_RECORD) as values:
        if not all(isinstance(values[key], str) for key in ("recipe", "title", "command")):
            raise TypeError("recipe, title and command must be text")
        return dict(values)


def read_stage(folder: Path) -> Values | None:
    """The content of a folder's ``stage.json``; ``None`` if there is no such file.

    Raises:
        AdcamError: The file is damaged.
    """
    path = folder / STAGE_NAME
    if not path.is_file():
        return None
    try:
        record: Values = json.loads(path.read_text("utf-8"))
        if record["state"] not in ("running", "done"):
            raise ValueError(f"state is {record['state']!r}")
        if not all(isinstance(record[key], dict) for key in ("inputs", "outputs")):
            raise TypeError("inputs and outputs must be objects")
        if record["state"] == "done":
            float(record["seconds"])
            dict.items(record["outputs"]["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdcamError(f"{path} is damaged ({error}); remove {folder} to start over") from error
    return record


def _read_finished(folder: Path) -> Values | None:
    record = read_stage(folder)
    return None if record is None or record["state"] != "done" else record


def find_damage(folder: Path) -> list[str]:
    """What became of the files of a finished stage since it wrote them.

    Args:
        folder: The folder of the stage.

    Returns:
        One clause for each file that is gone or has other bytes, in the order of their names;
        none if all are as they were written.
    """
    record = _read_finished(folder)
    recorded: Values = {} if record is None else record["outputs"]["files"]
    single = {name: digest for name, digest in recorded.items() if not name.endswith("/")}
    tables = _read_tables(folder) if len(single) < len(recorded) else {}
    damage = []
    for name in recorded.keys() - single.keys():
        table = tables.get(name, {})
        if hash_values(table) != recorded[name]:
            damage.append(f"{FILES_NAME} has changed since it was written")
        else:
            single |= {f"{name}{file}": digest for file, digest in table.items()}
    for name, digest in sorted(single.items()):
        if not (folder / name).is_file():
            damage.append(f"{name} is gone")
        elif hash_once(folder / name) != digest:
            damage.append(f"{name} has changed since it was written")
    return damage


def find_stale(recipe: Recipe) -> dict[str, str]:
    """Finished stages but the report that no longer fit what they were made from, with the reason.

    These are stages that were skipped, for the others have been run again.
    """
    stale = {}
    done = recipe.finished()
    for stage in (stage for stage in recipe.stages if stage.name in done):
        if lacking := [name for name in stage.needs if name not in done]:
            stale[stage.name] = f"{', '.join(lacking)} has not finished"
        elif changes := diff_configs(done[stage.name]["inputs"], _inputs(recipe, stage)):
            stale[stage.name] = f"changed: {_some(changes)}"
        elif damage := find_damage(recipe.folder(stage.name)):
            stale[stage.name] = _some([f"{stage.name}/{clause}" for clause in damage])
    return stale


def _choose(
    recipe: Recipe, only: Sequence[str], skip: Sequence[str], redo: Sequence[str]
) -> list[Stage[Any]]:
    for name in (*only, *skip, *redo):
        if not any(_is_named(stage, [name]) for stage in recipe.stages):
            names = [stage.name for stage in recipe.stages]
            raise AdcamError(f"there is no stage {name!r}; the stages are {', '.join(names)}")
    chosen = [
        stage
        for stage in recipe.stages
        if (not only or _is_named(stage, only)) and not _is_named(stage, skip)
    ]
    if unused := [name for name in redo if not any(_is_named(stage, [name]) for stage in chosen)]:
        raise AdcamError(f"--redo names stages that are left out: {', '.join(unused)}")
    return chosen


def _is_named(stage: Stage[Any], names: Sequence[str]) -> bool:
    return not {stage.name, *stage.name.split("/")}.isdisjoint(names)


def _check_left_out(recipe: Recipe, chosen: Sequence[Stage[Any]], log: Log) -> None:
    """Find, before hours of work, a stage that lacks the result of one that is left out."""
    names = {stage.name for stage in chosen}
    needed_by = {name: s.name for s in reversed(chosen) for name in s.needs if name not in names}
    for needed, stage in sorted(needed_by.items()):
        if not recipe.is_done(needed):
            raise AdcamError(
                f"stage {stage!r} needs the result of {needed!r}, which is left out and not in "
                f"{recipe.work_dir}"
            )
        damage = [f"{needed}/{clause}" for clause in find_damage(recipe.folder(needed))]
        if gone := [clause for clause in damage if clause.endswith("is gone")]:
            raise AdcamError(
                f"stage {stage!r} needs the result of {needed!r}, which is left out, but "
                f"{_some(gone)}; run {needed!r} too, which makes it again"
            )
        if damage:
            log(f"· {needed}: left out and taken as it is, though {_some(damage)}")


def _check_obstacles(recipe: Recipe, chosen: Sequence[Stage[Any]]) -> None:
    reasons = {stage.name: why for stage in chosen if (why := stage.obstacle(recipe)) is not None}
    if reasons:
        name, reason = next(iter(reasons.items()))
        raise AdcamError(
            f"stage {name!r} cannot run here: {reason}. Everything else runs with "
            f"--skip {' '.join(reasons)}"
        )


def _run_stage(recipe: Recipe, stage: Stage[Any], redo: bool, log: Log) -> bool:
    """Run a stage if it has to; whether it ran."""
    folder = recipe.folder(stage.name)
    shutil.rmtree(_discarded(folder), ignore_errors=True)
    inputs = _inputs(recipe, stage)
    record = read_stage(folder)
    if record is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise AdcamError(
                f"{folder} holds files, but no {STAGE_NAME} that says where they come from; "
                "remove it, or take another --work-dir"
            )
        log(f"· {stage.name}: {stage.title} …")
    elif redo or (changes := diff_configs(record["inputs"], inputs)):
        reason = "as asked for" if redo else f"changed: {_some(changes)}"
        log(f"· {stage.name}: {stage.title} again, {reason} …")
        _discard(folder)
    elif record["state"] == "running":
        log(f"· {stage.name}: resumes where it stopped …")
    elif damage := find_damage(folder):
        named = _some([f"{stage.name}/{clause}" for clause in damage])
        log(f"· {stage.name}: {stage.title} again, {named} …")
        if not all(clause.startswith(tuple(f"{n}/" for n in stage.repairs)) for clause in damage):
            _discard(folder)
    else:
        log(f"· {stage.name}: nothing changed, kept")
        return False
    state = {"stage": stage.name, "state": "running", "inputs": inputs, "outputs": {}}
    write_json(folder / STAGE_NAME, state)
    start = time.perf_counter()
    with peak_memory() as peak:
        values = stage.run(recipe, folder)
    seconds = round(time.perf_counter() - start, 1)
    outputs = {"files": _record_files(folder, stage.files(recipe)), **values}
    made = {
        "seconds": seconds,
        "peak_memory": vars(peak),
        "machine": describe_machine(),
        "versions": read_versions(),
    }
    write_json(folder / STAGE_NAME, {**state, "state": "done", "outputs": outputs, **made})
    log(f"  {stage.name}: {seconds:.0f} s")
    return True


def _inputs(recipe: Recipe, stage: Stage[Any]) -> dict[str, Any]:
    """What the stage would be made from now, as JSON reads it back from a file."""
    inputs: dict[str, Any] = to_plain({"adcam": __version__, **stage.describe(recipe)})
    return inputs


def _record_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Hash the files of a stage; those in folders one by one, in a table beside ``stage.json``."""
    hashes, tables = {}, {}
    for name in names:
        if (folder / name).is_dir():
            table = {
                path.relative_to(folder / name).as_posix(): hash_once(path)
                for path in sorted((folder / name).rglob("*"))
                if path.is_file() and not path.name.startswith(".")
            }
            tables[f"{name}/"] = table
            hashes[f"{name}/"] = hash_values(table)
        else:
            hashes[name] = hash_once(folder / name)
    if tables:
        write_json(folder / FILES_NAME, tables)
    return hashes


def _read_tables(folder: Path) -> dict[str, Any]:
    """The table of :func:`_record_files`; empty if it is gone or damaged, which is found out."""
    with suppress(AdcamError), open_json(folder / FILES_NAME, "damaged") as tables:
        return {name: dict(table) for name, table in tables.items()}
    return {}


def _discard(folder: Path) -> None:
    # Renamed first: a process killed here leaves no half of a result.
    folder.replace(_discarded(folder))
    shutil.rmtree(_discarded(folder))


def _discarded(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.discarded")


def _some(clauses: Sequence[str]) -> str:
    more = len(clauses) - _SHOWN_CHANGES
    return "; ".join(clauses[:_SHOWN_CHANGES]) + (f"; … ({more} more)" if more > 0 else "")
