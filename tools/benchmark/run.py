"""Time adcam and its rivals in one run, each number with all that it depends on.

    python tools/benchmark/run.py --list
    python tools/benchmark/run.py --op refine dense_crf --out rows.csv
    python tools/benchmark/run.py --tables rows.csv
    python tools/benchmark/run.py --op generate --sizes 20 --data VOC_ROOT --checkpoint FILE

The variants of a case run alternately, so that other load on the machine affects all of them. The
tests of an operation run first, then every variant is compared with the plain reference, and
nothing is timed unless both go well. What takes minutes is compared afterwards, by the files that
it has left, and nothing is printed unless that goes well.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Setting, describe_case
from measure import NOTES, ROOT, add_graphs, find_errors, is_gpu, make_rows, measure
from tables import format_tables, read_rows

from adcam.files import write_csv


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the tests, time the cases, print and write the rows."""
    args = parse_args(argv)
    if args.tables:
        print("\n\n".join(format_tables(read_rows(args.tables)).values()))
        return 0
    if args.list or not args.op:
        for name, case in CASES.items():
            print(f"{name:<16} {case.summary} (default: {', '.join(map(str, case.sizes))})")
        return 0
    if failed := run_tests(args.op, args.device):
        print(f"nothing is timed: tests fail in {', '.join(failed)}", file=sys.stderr)
        return 1
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for name in args.op:
        for size, batch in itertools.product(args.sizes or CASES[name].sizes, args.batch):
            measured = run_case(name, size, batch, args)
            print_rows(measured)
            rows += measured
            if args.out is not None:
                write_csv(args.out, list(rows[0]), [list(row.values()) for row in rows])
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    parser.add_argument("--op", nargs="+", choices=CASES, metavar="CASE", help="what to time")
    parser.add_argument(
        "--tables",
        type=Path,
        nargs="+",
        metavar="F.csv",
        help="print the tables of docs/performance.md that saved rows fill, and end",
    )
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="what --list says it is")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="B", help="one after the other"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="a GPU if any"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch in this process")
    parser.add_argument("--repeats", type=int, metavar="N", help="most runs of a variant")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for each case and size (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="F.csv", help="write the rows there")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="leave the others out")
    parser.add_argument(
        "--score-maps", type=Path, metavar="DIR", help="for level_boxes; default: made-up ones"
    )
    images = parser.add_argument_group("images (forward, generate, commands, start, growth)")
    images.add_argument("--data", type=Path, metavar="VOC_ROOT", help="default: generated ones")
    images.add_argument("--split", default="val", help="default: %(default)s")
    network = images.add_mutually_exclusive_group()
    network.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: random weights")
    network.add_argument(
        "--backbone",
        default="deit_tiny_patch16_224",
        metavar="NAME",
        help="a network of timm with random weights (default: %(default)s)",
    )
    images.add_argument(
        "--segmenter", type=Path, metavar="FILE", help="for commands; default: random weights"
    )
    images.add_argument("--workers", type=int, metavar="N", help="processes of adcam generate")
    return parser.parse_args(argv)


def run_tests(cases: Sequence[str], device: str) -> list[str]:
    """Run the tests of some cases, and return the files in which a test failed."""
    marks = "not slow" if is_gpu(device) else "not slow and not gpu"
    files = {test: marks for name in cases for test in CASES[name].tests}
    if is_gpu(device):
        files |= {test: "gpu and not slow" for name in cases for test in CASES[name].gpu_tests}
    failed = []
    for test, marks in files.items():
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", marks, test]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
            failed.append(test)
    return failed


def run_case(name: str, size: int, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one case at one size and batch."""
    case = CASES[name]
    with tempfile.TemporaryDirectory(prefix="adcam-benchmark-") as scratch:
        setting = Setting(
            args.device,
            batch,
            args.data,
            args.split,
            args.checkpoint,
            args.backbone,
            args.score_maps,
            args.workers,
            Path(scratch),
            args.segmenter,
        )
        # torch falls back to eager, with a warning alone, where one function was compiled for many
        # sizes (torch._dynamo.config.recompile_limit).
        torch.compiler.reset()
        variants = case.build(size, setting)
        if args.only:
            if unknown := sorted(set(args.only) - variants.keys()):
                raise ValueError(f"{name} has no variant {unknown}; it has {list(variants)}")
            variants = {key: value for key, value in variants.items() if key in args.only}
        variants = add_graphs(variants, args.device)
        errors = find_errors(variants)
        timings = measure(
            variants,
            device=args.device,
            repeats=args.repeats or case.repeats,
            max_seconds=args.seconds,
        )
        errors |= find_errors(variants, is_after=True)
        label = describe_case(name, setting)
        return make_rows(label, size, batch, args.device, variants, timings, errors)


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    columns = (
        *("variant", "median_s", "iqr_s", "ms_graph", "cpu_median_s", "times_ours"),
        *("times_ours_cpu", "peak_mib", "error", "score", *NOTES, "runs"),
    )
    about = (f"{first[key]}" for key in ("processor", "threads", "torch", "commit"))
    shown = [column for column in columns if any(row[column] != "" for row in rows)]
    table = Table(
        *shown,
        title=f"{first['case']} {first['size']}, batch {first['batch']} ({', '.join(about)})",
        title_justify="left",
    )
    for row in rows:
        table.add_row(*(str(row[column]) for column in shown))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    sys.exit(main())
