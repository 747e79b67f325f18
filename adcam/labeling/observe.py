"""What a run tells machines: a log of JSON lines, and numbers in Prometheus' text format.

Both are for people who watch many runs. The log has one object a line: ``start`` with versions and
hashes, ``image`` for every image, ``end`` with the counts. The metrics file holds the same counts
as gauges and counters and is replaced as a whole, as the textfile collector of Prometheus' node
exporter wants it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from adcam.files import name_in_error, write_text
from adcam.installation import read_versions
from adcam.version import __version__

METRICS_INTERVAL_S = 5.0
"""Seconds between two versions of the metrics file."""


@dataclass
class Observer:
    """Counts what a run does, and writes it where it was asked to.

    Attributes:
        log_json: The log, to which a run appends; ``None`` for none.
        metrics_file: The metrics; ``None`` for none. Every process needs a file of its own.
        labels: What tells this run from others in the metrics, e.g. the shard.
    """

    log_json: Path | None = None
    metrics_file: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images = {"ok": 0, "failed": 0, "skipped": 0}
        self._seconds: dict[str, float] = {}
        self._left = 0
        self._last = 0.0
        self._written = -METRICS_INTERVAL_S
        self._file: IO[str] | None = None

    def start(self, head: Mapping[str, Any], *, left: int, skipped: int) -> None:
        """Say what is about to be done.

        Args:
            head: Hashes and numbers that identify the run, JSON-serialisable.
            left: Number of images to label.
            skipped: Number of images that an earlier run had done.

        Raises:
            OSError: A file cannot be written.
        """
        self._left, self._images["skipped"] = left, skipped
        if self.log_json is not None:
            try:
                self.log_json.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.log_json.open("a", encoding="utf-8")
            except OSError as err:
                raise name_in_error(err, self.log_json) from err
            machine = {"host": socket.gethostname(), "process": os.getpid()}
            versions = {"adcam": __version__, **read_versions()}
            counts = {"left": left, "skipped": skipped}
            self._log("start", {**head, **machine, "versions": versions, **counts})
        self._write_metrics()

    def image(self, entry: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """Say what became of an image: its line of the manifest, and the seconds of each step.

        Raises:
            OSError: A file cannot be written.
        """
        self._images[entry["status"]] += 1
        self._left -= 1
        self._last = time.time()
        for step, spent in seconds.items():
            self._seconds[step] = self._seconds.get(step, 0.0) + spent
        if self._file is not None:
            shown = {key: entry[key] for key in ("id", "status", "error", "mask") if key in entry}
            times = {step: round(spent, 4) for step, spent in seconds.items()}
            self._log("image", {**shown, "seconds": times})
        if time.monotonic() - self._written >= METRICS_INTERVAL_S:
            self._write_metrics()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self.end("done" if kind is None else kind.__name__)

    def end(self, reason: str) -> None:
        """Say how the run ended, and close the log.

        Args:
            reason: ``"done"``, or the type of what was raised.
        """
        if self._file is not None:
            seconds = {step: round(spent, 3) for step, spent in self._seconds.items()}
            counts = {"images": self._images, "left": self._left, "seconds": seconds}
            self._log("end", {"reason": reason, **counts})
            self._file.close()
            self._file = None
        self._write_metrics()

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        assert self._file is not None and self.log_json is not None
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        try:
            self._file.write(json.dumps({"time": now, "event": event, **values}) + "\n")
            self._file.flush()
        except OSError as err:
            raise name_in_error(err, self.log_json) from err

    def _write_metrics(self) -> None:
        if self.metrics_file is None:
            return
        self._written = time.monotonic()
        write_text(self.metrics_file, self.format_metrics())

    def format_metrics(self) -> str:
        """Format the numbers so far as Prometheus reads them.

        Source: https://prometheus.io/docs/instrumenting/exposition_formats/
        """
        versions = {"version": __version__, **self.labels}
        lines = [
            *_header("adcam_run_info", "gauge", "The version that runs."),
            _sample("adcam_run_info", versions, 1),
            *_header("adcam_images_total", "counter", "Images by what became of them."),
            *(
                _sample("adcam_images_total", {**self.labels, "status": status}, count)
                for status, count in self._images.items()
            ),
            *_header("adcam_images_left", "gauge", "Images that are still to be labelled."),
            _sample("adcam_images_left", self.labels, self._left),
            *_header("adcam_step_seconds_total", "counter", "Seconds of each step, summed."),
            *(
                _sample("adcam_step_seconds_total", {**self.labels, "step": step}, round(spent, 3))
                for step, spent in self._seconds.items()
            ),
            *_header("adcam_last_image_timestamp_seconds", "gauge", "When the last image came."),
            _sample("adcam_last_image_timestamp_seconds", self.labels, round(self._last, 3)),
        ]
        return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    quoted = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{quoted}}} {value}" if quoted else f"{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
