"""The tables of docs/performance.md that saved rows fill."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

Row = dict[str, str]

MISSING = "not measured"
CALL, GRAPH = "ms_call", "ms_graph"
TIME, PROCESSOR = "median_s", "cpu_median_s"


@dataclass(frozen=True)
class Work:
    """What a row timed: its case, size, batch and variant."""

    case: str
    size: int
    batch: int
    variant: str


@dataclass(frozen=True)
class Figure:
    """A line of a table of operations.

    Attributes:
        text: What was measured.
        ours: What adcam does.
        rival: What it is compared with, in the last run that has both; ``None`` gives the time.
        is_cost: Whether a quotient says how much longer ours takes, and not how much the rival.
        target: The largest time or cost, or the smallest gain, that is wanted.
        has_graph: Whether it also runs as a CUDA graph.
        is_elsewhere: Whether the rival may be of another run.
    """

    text: str
    ours: Work
    rival: Work | None = None
    is_cost: bool = False
    target: str = ""
    has_graph: bool = True
    is_elsewhere: bool = False


def format_tables(rows: Sequence[Row]) -> dict[str, str]:
    """All tables by name, in the order of the page."""
    return {
        "cpu": format_cpu(rows),
        "peers": format_peers(rows),
        "growth": format_growth(rows),
        "commands": format_commands(rows),
        "operations": format_operations(rows),
        "generate": format_generate(rows),
    }


def list_figures() -> list[Figure]:
    """The lines of the table of operations on a GPU."""
    colors = Work("color_diffusion", 112, 16, "adcam")
    by_colors = Figure(
        "diffusion along colours compared with plain torch, 16 images, 3 maps of 112×112",
        colors,
        replace(colors, variant="torch eager"),
    )
    return [*_list_refinements(), *_list_forward_passes(), *_list_crfs(), by_colors]


def list_cpu_figures() -> list[Figure]:
    """The lines of the table of operations on a CPU."""
    refined = [Work("refine", n, 1, "adcam") for n in (784, 2304)]
    plain = Work("forward deit_tiny", 448, 1, "plain")
    crfs = [Work("dense_crf", labels, 1, "adcam") for labels in (2, 3, 4)]
    passes = (
        ("capture and AD-CAM", "capture + AD-CAM", "float32", "1.20"),
        ("capture and AD-CAM", "capture + AD-CAM", "bfloat16", "1.20"),
        ("all attention kept by hooks", "all attention by hooks", "float32", ""),
    )
    ends = {"float32": "", "bfloat16": ", bfloat16"}
    return [
        *(
            Figure(
                f"AD-CAM's refinement relative to one N×N×N product, N = {work.size}",
                work,
                replace(work, variant="gemm roofline"),
                is_cost=True,
                target="1.5",
            )
            for work in refined
        ),
        *(
            Figure(
                f"forward pass with {label} relative to a plain fused one, {dtype}",
                replace(plain, variant=variant + ends[dtype]),
                replace(plain, variant="plain" + ends[dtype]),
                is_cost=True,
                target=target,
            )
            for label, variant, dtype, target in passes
        ),
        *(
            Figure(
                f"CRF, {work.size} labels, {label}compared with pydensecrf",
                replace(work, variant=f"adcam{end}"),
                replace(work, variant="pydensecrf"),
                target=target,
            )
            for label, end, target in (("", "", "4"), ("a second pass, ", ", second pass", "6"))
            for work in crfs
        ),
    ]


def _list_refinements() -> list[Figure]:
    ours = {n: Work("refine", n, 16, "adcam") for n in (784, 1024, 2304)}
    compiled = ("torch.compile (TF32) of the reference", "torch.compile, TF32", "2")
    gains = [
        Figure(
            f"AD-CAM's refinement compared with {label}, N = {n}, batch 16",
            ours[n],
            replace(ours[n], variant=rival),
            target=target,
        )
        for label, rival, target in (compiled, ("eager float32", "torch eager", "5"))
        for n in (1024, 2304)
    ]
    apart = [
        Figure(
            f"AD-CAM's refinement with artefacts removed, N = {n}, batch 16",
            replace(work, variant="adcam, artefacts out"),
        )
        for n, work in ours.items()
    ]
    quick = [
        Figure(
            f'the quick form, `walk="two_hop"`, N = {n}, batch 16',
            Work("two_hop_walk", n, 16, "torch" if n > 2048 else "triton"),  # what "auto" takes
            target="0.4" if n == 2304 else "",
        )
        for n in ours
    ]
    return [*gains, *apart, *quick]


def _list_forward_passes() -> list[Figure]:
    figures = []
    for label, variant, targets in (
        ("capture", "capture", ("1.12", "1.25", "1.12")),
        ("capture and AD-CAM", "capture + AD-CAM", ("1.15", "1.3", "1.15")),
    ):
        networks = (("small", 32), ("tiny", 32), ("base", 16))
        for (name, batch), target in zip(networks, targets, strict=True):
            ours = Work(f"forward deit_{name}", 448, batch, f"{variant}, bfloat16")
            text = f"DeiT-{name[0].upper()} with {label} relative to a plain forward pass"
            plain = replace(ours, variant="plain, bfloat16")
            text += f", 448 px, bfloat16, batch {batch}"
            figures.append(Figure(text, ours, plain, is_cost=True, target=target))
    return figures


def _list_crfs() -> list[Figure]:
    ours = {b: Work("dense_crf_batch", 3, b, "adcam") for b in (1, 8, 32)}
    figures = [
        Figure(
            f"CRF, 3 labels, time per image in batches of {b}",
            work,
            target="1.5" if b == 32 else "",
            has_graph=False,
        )
        for b, work in ours.items()
    ]
    rival = Figure(
        "CRF, 3 labels, batches of 32, compared with pydensecrf on one thread",
        ours[32],
        replace(ours[1], variant="pydensecrf"),
        target="300",
        has_graph=False,
        is_elsewhere=True,
    )
    many = replace(ours[8], size=21)
    text = "CRF, 21 labels, time per image in batches of 8"
    return [*figures, rival, Figure(text, many, has_graph=False)]


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Read saved rows; ``run`` becomes what distinguishes the runs of all files.

    Args:
        paths: CSV files that ``run.py`` wrote, or that have its columns.
    """
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.append({**row, "run": f"{path}: {row.get('run') or row.get('commit')}"})
    return rows


def format_operations(rows: Sequence[Row]) -> str:
    """The table of operations on a GPU. A number in bold meets its target."""
    return _format_figures(rows, list_figures(), {"by call": CALL, "on the GPU": GRAPH})


def format_cpu(rows: Sequence[Row]) -> str:
    """The same for a CPU."""
    columns = {"by time": TIME, "by processor seconds": PROCESSOR}
    of_cpu = [row for row in rows if row.get("device") == "cpu"]
    return _format_figures(of_cpu, list_cpu_figures(), columns)


def _format_figures(
    rows: Sequence[Row], figures: Sequence[Figure], columns: Mapping[str, str]
) -> str:
    lines = [
        (
            *(figure.text, _format_target(figure)),
            *(
                ""
                if column == GRAPH and not figure.has_graph
                else _format_cell(rows, figure, column)
                for column in columns.values()
            ),
        )
        for figure in figures
    ]
    return _format_table(("figure", "target", *columns), lines)


def format_generate(rows: Sequence[Row]) -> str:
    """The table of runs of ``generate`` on a GPU, one line for each row that has its columns."""
    head = (
        *("commit", "type", "setting", "images/s once running (target: ≥ 200)"),
        *("first mask, s", "GPU busy (target: ≥ 60 %)", "mIoU"),
    )
    lines = []
    for row in rows:
        is_generate = row.get("case", "generate") == "generate" and row.get("device") != "cpu"
        if is_generate and row.get("images_per_s"):
            kernels = f"kernels: {row['kernels']}" if row.get("kernels") else ""
            setting = [part for part in (row.get("variant"), kernels, row.get("setting")) if part]
            share = row.get("gpu_busy")
            busy = f"{100 * float(share):.0f} %" if share else MISSING
            about = (row["commit"], row["dtype"], ", ".join(setting))
            score = row.get("score") or MISSING
            lines.append((*about, row["images_per_s"], row["first_image_s"], busy, score))
    return _format_table(head, lines)


def format_peers(rows: Sequence[Row]) -> str:
    """The table of ``generate`` beside the peers' recipe on a CPU."""
    head = ("variant", "images", "seconds", "relative to the first", "processor seconds", "mIoU")
    lines = [
        (
            *(row["variant"], row["size"], _to_tenths(row["median_s"])),
            *(str(_round(Decimal(row["times_ours"]))), _to_tenths(row["cpu_median_s"])),
            row["score"],
        )
        for row in rows
        if (row.get("case"), row.get("device")) == ("generate", "cpu")
    ]
    return _format_table(head, lines)


def format_growth(rows: Sequence[Row]) -> str:
    """The table of how time and memory of commands grow."""
    grown = [row for row in rows if row.get("case") == "growth"]
    sizes = list(dict.fromkeys(row["size"] for row in grown))
    head = ("command", *(f"{int(n):,} images: seconds, MiB" for n in sizes), "growth of memory")
    lines = []
    for command in dict.fromkeys(row["variant"] for row in grown):
        of_command = [row for row in grown if row["variant"] == command]
        peaks = [Decimal(row["peak_mib"]) for row in of_command]
        growth = round(100 * (peaks[-1] / peaks[0] - 1), 1) + 0  # no -0.0
        seconds = [_to_tenths(row[TIME]) for row in of_command]
        cells = (f"{time}, {peak:.0f}" for time, peak in zip(seconds, peaks, strict=True))
        lines.append((command, *cells, f"{growth} %"))
    return _format_table(head, lines)


def format_commands(rows: Sequence[Row]) -> str:
    """The table of commands in processes of their own, and of their start."""
    head = (
        *("command", "device", "images", "seconds", "processor seconds", "largest process, MiB"),
        *("images/s once running", "first result, s", "GPU busy"),
    )
    lines = []
    for row in rows:
        if row.get("case") in ("commands", "start"):
            share = f"{100 * float(row['gpu_busy']):.0f} %" if row["gpu_busy"] else ""
            seconds = (_to_tenths(row[TIME]), _to_tenths(row[PROCESSOR]), row["peak_mib"])
            pace = (row["images_per_s"], row["first_image_s"], share)
            lines.append((row["variant"], row["device"], row["size"], *seconds, *pace))
    return _format_table(head, lines)


def _format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    missing = (MISSING, *[""] * (len(head) - 1))
    rule = f"|{'---|' * len(head)}"
    cells = (f"| {' | '.join(line)} |" for line in lines or [missing])
    return "\n".join([f"| {' | '.join(head)} |", rule, *cells])


def _format_target(figure: Figure) -> str:
    if not figure.target:
        return "–"
    if figure.rival is None:
        return f"≤ {figure.target} ms"
    return f"≤ {figure.target}" if figure.is_cost else f"≥ {figure.target}×"


def _format_cell(rows: Sequence[Row], figure: Figure, column: str) -> str:
    """A time, or a quotient; a rival's gain is counted from its time by call."""
    wanted = [(figure.ours, column)]
    if figure.rival is not None:
        is_gain = column == GRAPH and not figure.is_cost
        wanted.append((figure.rival, CALL if is_gain else column))
    together = [[one] for one in wanted] if figure.is_elsewhere else [wanted]
    times = [time for group in together for time in _find_times(rows, group)]
    if len(times) < len(wanted):
        return MISSING
    ours, *rival = times
    if not rival:
        value, text = ours, f"{_round(ours)} ms"
    elif figure.is_cost:
        value = ours / rival[0]
        text = str(_round(value))
    else:
        value = rival[0] / ours
        both = times[:1] if column == GRAPH else times
        text = f"{float(f'{value:.2g}'):g}× ({', '.join(str(_round(t)) for t in both)} ms)"
    is_less = figure.is_cost or not rival
    target = Decimal(figure.target or "NaN")
    meets = not target.is_nan() and (value <= target if is_less else value >= target)
    return f"**{text}**" if meets else text


def _find_times(rows: Sequence[Row], wanted: Sequence[tuple[Work, str]]) -> list[Decimal]:
    """The milliseconds of the last run that has them all, or nothing."""
    for run in reversed(dict.fromkeys(row["run"] for row in rows)):
        of_run = [row for row in rows if row["run"] == run]
        found = [_find_time(of_run, work, column) for work, column in wanted]
        times = [time for time in found if time is not None]
        if len(times) == len(wanted):
            return times
    return []


def _find_time(rows: Sequence[Row], work: Work, column: str) -> Decimal | None:
    """The milliseconds of the last row that has them; of a CRF, those of an image."""
    about = (str(work.size), str(work.batch))
    # Before rows of the forward pass named the network, it was DeiT-Tiny.
    cases = (work.case, "forward") if work.case == "forward deit_tiny" else (work.case,)
    for row in reversed(rows):
        is_of_work = row.get("case") in cases and (row.get("size"), row.get("batch")) == about
        if is_of_work and row.get(column):
            if row["variant"] == work.variant:
                images = work.batch if work.case == "dense_crf_batch" else 1
                return Decimal(row[column]) * (1 if column in (CALL, GRAPH) else 1000) / images
            if row["variant"] == f"{work.variant}, an image":
                return Decimal(row[column])
    return None


def _round(value: Decimal) -> Decimal:
    step = Decimal("0.01") if value < 100 else Decimal(1)
    return value.quantize(step, ROUND_HALF_UP)


def _to_tenths(seconds: str) -> str:
    return str(Decimal(seconds).quantize(Decimal("0.1"), ROUND_HALF_UP))
