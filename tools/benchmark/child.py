"""Does one piece of work in a process of its own, and prints what it took as JSON.

    python tools/benchmark/child.py TRACE WORK WORD...

``TRACE`` is a file for a trace of the work, or nothing. The account of the largest process is thus
not mixed with that of other work.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def run_adcam(*words: str) -> Mapping[str, float]:
    """One command of adcam."""
    from adcam.cli import main as adcam

    if code := adcam(words):
        sys.exit(code)
    return {}


def label_list(checkpoint: str, root: str, out: str, device: str, options: str) -> Any:
    """A list of images, by ``PseudoLabeler``; the masks are written when all are made."""
    from adcam import PseudoLabeler
    from adcam.settings import TestViews

    chosen = json.loads(options)
    views = TestViews(tuple(chosen.pop("scales")), flip=chosen.pop("flip"))
    labeler = PseudoLabeler.from_checkpoint(checkpoint, device=device, views=views, **chosen)
    lines = Path(root, "labels.csv").read_text().splitlines()[1:]
    labels = dict(line.split(",") for line in lines)
    paths = sorted(Path(root, "JPEGImages").iterdir())
    start = time.perf_counter()
    made = labeler(paths, labels=[labels[path.stem].split() for path in paths])
    rate = len(paths) / (time.perf_counter() - start)
    Path(out).mkdir(parents=True)
    for path, label in zip(paths, made, strict=True):
        label.save(Path(out, f"{path.stem}.png"))
    return {"images_per_s": rate}


def import_torch() -> Mapping[str, float]:
    """Loading torch."""
    import torch  # noqa: F401

    return {}


def import_timm() -> Mapping[str, float]:
    """Loading torch and timm."""
    import timm  # noqa: F401

    return {}


def load_network(checkpoint: str) -> Mapping[str, float]:
    """Loading torch, timm and a classifier."""
    from adcam.models.classifier_file import load_classifier

    load_classifier(checkpoint)
    return {}


WORKS: Mapping[str, Callable[..., Mapping[str, float]]] = {
    work.__name__: work for work in (run_adcam, label_list, import_torch, import_timm, load_network)
}


def main() -> None:
    """Do the work that the arguments name."""
    trace, name, *words = sys.argv[1:]
    if trace:
        from adcam.labeling.trace import record_trace

        with record_trace(Path(trace)) as recorded:
            notes = dict(WORKS[name](*words))
        if recorded.gpu_busy is not None:
            notes["gpu_busy"] = recorded.gpu_busy
    else:
        notes = dict(WORKS[name](*words))
    if "adcam.labeling.executor" in sys.modules:
        sys.modules["adcam.labeling.executor"].end_server()  # to be counted, it must have ended
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({"peak_mib": max(read_peak(), ended), "notes": notes}))


def read_peak() -> float:
    """The most resident memory of this process so far, in MiB.

    ``ru_maxrss`` begins with the memory of the process that started this one (Linux, ``exec_mmap``
    in fs/exec.c), so it is asked only where there is no ``/proc``.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
