"""Recipes for clusters and the tool that predicts them: what can be tested without a cluster."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from adcam.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "tools" / "cluster"
SIMULATE = ROOT / "tools" / "simulate_scale.py"

# Keys that the API references document, as far as the recipes use them: batch/v1 Job and core/v1
# Pod of Kubernetes 1.33, ray.io/v1 RayJob of KubeRay 1.3. Values are what a key holds: `None` for a
# plain value or a map of the user's own keys, a dict for known keys, a list for a list of them.
RESOURCES = {"requests": None, "limits": None}
CONTAINER: dict[str, Any] = {
    **dict.fromkeys(("name", "image", "command", "args", "env")),
    "resources": RESOURCES,
    "envFrom": [{"secretRef": {"name": None}, "configMapRef": {"name": None}}],
    "volumeMounts": [dict.fromkeys(("name", "mountPath", "readOnly", "subPath"))],
}
POD = {
    "metadata": {"labels": None, "annotations": None},
    "spec": {
        **dict.fromkeys(("restartPolicy", "nodeSelector", "serviceAccountName")),
        "containers": [CONTAINER],
        "volumes": [
            {
                "name": None,
                "persistentVolumeClaim": {"claimName": None, "readOnly": None},
                "emptyDir": None,
            }
        ],
    },
}
METADATA = dict.fromkeys(("name", "namespace", "labels", "annotations"))
JOB = {
    **dict.fromkeys(("apiVersion", "kind")),
    "metadata": METADATA,
    "spec": {
        **dict.fromkeys(("completionMode", "completions", "parallelism", "backoffLimit")),
        **dict.fromkeys(("backoffLimitPerIndex", "maxFailedIndexes", "ttlSecondsAfterFinished")),
        "podFailurePolicy": {
            "rules": [
                {
                    "action": None,
                    "onPodConditions": [dict.fromkeys(("type", "status"))],
                    "onExitCodes": dict.fromkeys(("containerName", "operator", "values")),
                }
            ]
        },
        "template": POD,
    },
}
GROUP = {"rayStartParams": None, "template": POD}
RAY_JOB = {
    **dict.fromkeys(("apiVersion", "kind")),
    "metadata": METADATA,
    "spec": {
        **dict.fromkeys(("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")),
        **dict.fromkeys(("backoffLimit", "runtimeEnvYAML", "submissionMode")),
        "rayClusterSpec": {
            **dict.fromkeys(("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions")),
            "headGroupSpec": {"serviceType": None, **GROUP},
            "workerGroupSpecs": [
                {
                    **dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas")),
                    **GROUP,
                }
            ],
        },
    },
}


def find_strays(found: Any, known: Any, where: str) -> list[str]:
    """Paths of keys that are not documented, or hold something of another kind."""
    if known is None:
        return []
    if isinstance(known, list):
        if not isinstance(found, list):
            return [where]
        items = enumerate(found)
        return [s for i, item in items for s in find_strays(item, known[0], f"{where}[{i}]")]
    if not isinstance(found, dict):
        return [where]
    strays = [f"{where}.{key}" for key in found.keys() - known.keys()]
    shared = found.keys() & known.keys()
    return strays + [s for k in shared for s in find_strays(found[k], known[k], f"{where}.{k}")]


@pytest.mark.parametrize(
    ("name", "known"), [("kubernetes_shards.yaml", JOB), ("kuberay_job.yaml", RAY_JOB)]
)
def test_manifests_hold_documented_keys_alone(name: str, known: Any) -> None:
    (found,) = yaml.safe_load_all((RECIPES / name).read_text("utf-8"))
    assert find_strays(found, known, "") == []
    broken = json.loads(json.dumps(found))
    broken["spec"]["parallel"] = 3
    assert find_strays(broken, known, "") == [".spec.parallel"]


def test_every_mount_has_its_volume() -> None:
    for path in RECIPES.glob("*.yaml"):
        pods = find_pods(yaml.safe_load(path.read_text("utf-8")))
        assert pods
        for pod in pods:
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def find_pods(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [pod for item in value for pod in find_pods(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if "containers" in value else []
    return own + [pod for item in value.values() for pod in find_pods(item)]


def find_commands(path: Path) -> list[list[str]]:
    """The words of each `adcam` command of a manifest."""
    found = yaml.safe_load(path.read_text("utf-8"))
    texts = [found["spec"]["entrypoint"]] if "entrypoint" in found["spec"] else []
    texts += [c["args"][0] for p in find_pods(found) for c in p["containers"] if "args" in c]
    commands = [text.partition("||")[0].replace("$JOB_COMPLETION_INDEX", "3") for text in texts]
    return [shlex.split(text) for text in commands]


@pytest.mark.parametrize("name", ["kubernetes_shards.yaml", "kuberay_job.yaml"])
def test_commands_of_manifests_parse(name: str) -> None:
    ((program, *words),) = find_commands(RECIPES / name)
    assert program == "adcam"
    args = build_parser().parse_args(words)
    assert args.command == "generate"


def test_scripts_are_sound() -> None:
    scripts = sorted(RECIPES.glob("*.sh"))
    assert len(scripts) == 3
    for script in scripts:
        assert script.stat().st_mode & stat.S_IXUSR
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert "set -euo pipefail" in script.read_text()


@pytest.mark.slow
def test_the_shell_recipe_runs_and_resumes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "adcam"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adcam "$@"\n')
    program.chmod(0o755)
    (tmp_path / "photos").mkdir()
    for seed in range(9):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    env["PATH"] = f"{program.parent}{os.pathsep}{env['PATH']}"

    def run(out: str, *words: str) -> subprocess.CompletedProcess[str]:
        common = ["--checkpoint", str(tiny_checkpoint), "--labels", "predicted", "--scales", "32"]
        command = [*words, str(tmp_path / "photos"), "--out", str(tmp_path / out), *common]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    # An image that fails is told by the exit code; the others are there, and so is the manifest.
    (tmp_path / "photos" / "bad.png").write_text("no image")
    for _ in range(2):
        done = run("shards", str(RECIPES / "shards.sh"), "2")
        assert done.returncode == 1, done.stderr
    assert run("whole", "adcam", "generate").returncode == 1
    whole, shards = (
        {p.name: p.read_bytes() for p in (tmp_path / name / "masks").iterdir()}
        for name in ("whole", "shards")
    )
    assert len(whole) == 9
    assert whole == shards
    assert len((tmp_path / "shards" / "manifest.jsonl").read_text().splitlines()) == 10


def predict(tmp_path: Path, *words: str) -> str:
    run = {"ok": 8, "failed": {"x": "y"}, "seconds": {"decode": 0.9, "network": 9, "total": 12}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    command = [sys.executable, str(SIMULATE), str(tmp_path / "run.json"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_prediction_of_simple_cases(tmp_path: Path) -> None:
    # 1.1 s an image: two workers take 100 images in 55 s, and start for 5.
    text = predict(tmp_path, "--images", "100", "--workers", "2", "--start", "5")
    assert "100 images: 60.0 s, 1.67 images/s" in text
    # The network alone decides: 0.1 s to decode the first, then 1 s an image on one GPU.
    text = predict(tmp_path, "--images", "100", "--workers", "2", "--gpus", "1")
    assert "100 images: 100.1 s" in text
    # Many images repeat the rate of the first ones, over machines.
    text = predict(tmp_path, "--images", "1e6", "--workers", "1", "--machines", "10")
    assert "1000000 images: 110000.0 s, 9.09 images/s" in text


def test_a_slow_last_stage_holds_the_first_back() -> None:
    sys.path.insert(0, str(SIMULATE.parent))
    try:
        from simulate_scale import Stage, simulate
    finally:
        sys.path.pop(0)
    assert simulate([Stage(0.01, 1, queue=1), Stage(1.0, 1)], 50) == pytest.approx(50.01)
    spread = simulate([Stage(1.0, 1), Stage(1.0, 1)], 2000, spread=0.5)
    assert 2000 < spread < 2300  # draws make the stages wait for each other
    assert simulate([Stage(1.0, 4)], 2000, spread=0.3) == pytest.approx(500, rel=0.05)
