"""Predict how long ``adcam generate`` takes, from the seconds that its steps were measured to take.

    adcam generate photos/ --checkpoint C --out sample --workers 0 --json sample.json
    python tools/simulate_scale.py sample.json --images 1000 --workers 2
    python tools/simulate_scale.py sample.json --images 100e6 --workers 64 --machines 16

With ``--gpus`` the steps run in pools of their own, as on machines with GPUs: decoding and the
steps behind the network on ``--workers`` processors each, the network on the GPUs, with queues
between them that hold few images. ``--set network=0.022`` replaces or adds a measured time.

Assumptions: images follow one another without gaps; every image takes the mean time, or, with
``--spread``, times with that coefficient of variation (log-normal, seeded); processes do not slow
each other down (on a machine with other work they do: measure there); storage keeps up; machines
share nothing but the list of images. ``--start`` is what a process takes before its first image.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SIMULATED = 20_000
"""Images that are simulated one by one; more repeat the rate that these come to."""


@dataclass(frozen=True)
class Stage:
    """A pool of processes that do some steps of an image one after the other.

    Attributes:
        seconds: What an image takes, on average.
        servers: Number of processes.
        queue: Most finished images that wait for the next stage.
    """

    seconds: float
    servers: int
    queue: int = 16


def simulate(stages: Sequence[Stage], images: int, *, spread: float = 0.0, seed: int = 0) -> float:
    """Simulate images in a line of stages and return the seconds until the last is done.

    A process takes the next image when it is free, when the stage before has finished it, and when
    its own last image has found a place in the queue behind it.

    Args:
        stages: The stages, in their order.
        images: Number of images.
        spread: Coefficient of variation of the seconds of an image; 0 for equal ones.
        seed: The seed of the draws.

    Example:
        >>> simulate([Stage(1.0, 2)], 10)
        5.0
        >>> simulate([Stage(1.0, 2), Stage(2.0, 1)], 10)
        21.0
    """
    draws = _draw(spread, seed)
    free = [[0.0] * stage.servers for stage in stages]
    # When images left each stage's queue, which bounds when later ones may enter it.
    taken: list[list[float]] = [[] for _ in stages]
    last = 0.0
    for number in range(images):
        ready = 0.0
        for place, stage in enumerate(stages):
            start = max(ready, heapq.heappop(free[place]))
            taken[place].append(start)
            done = start + stage.seconds * next(draws)
            if place + 1 < len(stages) and number >= (room := stage.queue + stage.servers):
                done = max(done, taken[place + 1][number - room])
            heapq.heappush(free[place], done)
            ready = done
        last = max(last, ready)
    return last


def _draw(spread: float, seed: int) -> Iterator[float]:
    """Factors with mean 1."""
    rng = random.Random(seed)
    sigma = math.sqrt(math.log1p(spread**2))
    while True:
        yield rng.lognormvariate(-(sigma**2) / 2, sigma) if spread else 1.0


def predict(stages: Sequence[Stage], images: int, *, start: float, spread: float) -> float:
    """Seconds for any number of images on one machine, the start of its processes included."""
    few = min(images, SIMULATED)
    seconds = simulate(stages, few, spread=spread)
    if images > few:
        half = simulate(stages, few // 2, spread=spread)
        seconds += (images - few) * (seconds - half) / (few - few // 2)
    return start + seconds


def read_times(path: Path) -> dict[str, float]:
    """Seconds of each step of an image, from what ``adcam generate --json`` wrote."""
    run = json.loads(path.read_text("utf-8"))
    images = run["ok"] + len(run["failed"])
    if not images:
        raise SystemExit(f"{path}: no image was labelled in this run; start it with --overwrite")
    return {step: s / images for step, s in run["seconds"].items() if step != "total"}


def plan_stages(times: Mapping[str, float], workers: int, gpus: int) -> list[Stage]:
    """The pools of one machine: whole images in every worker, or three pools with GPUs."""
    if not gpus:
        return [Stage(sum(times.values()), workers)]
    first = times.get("decode", 0.0)
    middle = times.get("network", 0.0) + times.get("refine", 0.0)
    rest = sum(s for step, s in times.items() if step not in ("decode", "network", "refine"))
    return [Stage(first, workers), Stage(middle, gpus), Stage(rest, workers)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("times", type=Path, help="what --json of a small run wrote")
    parser.add_argument("--images", type=float, required=True, help="such as 1e8")
    parser.add_argument("--workers", type=int, default=1, help="processes a machine")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs a machine")
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--start", type=float, default=0.0, help="seconds before the first image")
    parser.add_argument("--spread", type=float, default=0.0, help="coefficient of variation")
    parser.add_argument("--set", nargs="+", default=[], metavar="STEP=SECONDS")
    args = parser.parse_args()
    times = read_times(args.times)
    times |= {name: float(value) for name, _, value in (text.partition("=") for text in args.set)}
    images = math.ceil(args.images / args.machines)
    stages = plan_stages(times, args.workers, args.gpus)
    seconds = predict(stages, images, start=args.start, spread=args.spread)
    shown = ", ".join(f"{step} {1000 * s:.1f}" for step, s in times.items())
    print(f"milliseconds an image: {shown}")
    print(f"{args.images:.0f} images: {seconds:.1f} s, {args.images / seconds:.2f} images/s")
    cpu = sum(s for step, s in times.items() if not args.gpus or step not in ("network", "refine"))
    print(f"processor hours of the steps: {cpu * args.images / 3600:.1f}")
    if args.gpus:
        print(f"GPU hours held: {seconds * args.gpus * args.machines / 3600:.1f}")
        print(f"GPU hours of the steps: {stages[1].seconds * args.images / 3600:.1f}")


if __name__ == "__main__":
    main()
