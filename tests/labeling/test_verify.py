"""What others see of a run: how far it is, whether its files are sound, its log and its metrics."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from adcam.cli import main
from adcam.errors import AdcamError
from adcam.files import hash_bytes, hash_values
from adcam.labeling.observe import Observer
from adcam.labeling.output_folder import OutputFolder
from adcam.labeling.shards import WHOLE, Shard
from adcam.labeling.status import format_seconds, read_status
from adcam.labeling.verify import verify_folder

CONFIG = {"adcam": "0", "labeler": {"classes": ["cat"], "mask_values": [1]}}
IDS = ["a", "b c", "sub/ü", "x.jpg"]


def add(folder: OutputFolder, img_id: str, status: str = "ok") -> None:
    """What a run does with an image, without a network."""
    if status == "failed":
        folder.append({"id": img_id, "status": "failed", "error": "cannot be decoded"})
        return
    content = f"mask of {img_id}".encode()
    path = folder.mask_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    entry = {"id": img_id, "status": "ok", "mask": hash_bytes(content), "mask_bytes": len(content)}
    folder.append({**entry, "maps": None, "config": hash_values(CONFIG), "seconds": 0.1})


def fill(path: Path, shard: Shard = WHOLE, *, leave_out: int = 0) -> None:
    with OutputFolder(path, CONFIG, shard=shard) as folder:
        mine = [IDS[i] for i in folder.start(IDS)]
        for img_id in mine[: len(mine) - leave_out]:
            add(folder, img_id, "failed" if img_id == "b c" else "ok")
        if not leave_out:
            folder.finish(mine)


def test_a_sound_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    found = verify_folder(tmp_path)
    assert found.is_sound and (found.ok, found.failed, found.unknown) == (3, 1, 0)
    assert main(["verify", str(tmp_path)]) == 0
    assert "is as its manifest says: 3 images sound, 1 without" in capsys.readouterr().out


def test_missing_changed_and_orphaned_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    masks = tmp_path / "masks"
    (masks / "a.png").write_bytes(b"mask of b")  # as many bytes
    (masks / "sub" / "ü.png").unlink()
    (masks / "sub" / "ü.png").symlink_to(masks / "x.jpg.png")
    (masks / "x.jpg.png").unlink()
    (masks / "stray.png").write_bytes(b"")
    (masks / "b c.png").write_bytes(b"")  # the manifest says that it failed
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / ".adcam-1.tmp").write_bytes(b"")
    found = verify_folder(tmp_path)
    assert found.changes == {
        "a": "the mask has changed",
        "sub/ü": "the mask is a symbolic link",
        "x.jpg": "the mask is missing",
    }
    assert found.orphans == ["masks/b c.png", "masks/stray.png", "maps/.adcam-1.tmp"]
    assert verify_folder(tmp_path, by_size=True).changes.keys() == {"sub/ü", "x.jpg"}
    assert main(["verify", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 1
    printed = capsys.readouterr()
    assert "NOT as its manifest says" in printed.out
    for name in ("a: the mask has changed", "masks/stray.png", "maps/.adcam-1.tmp"):
        assert name in printed.err
    assert json.loads((tmp_path / "found.json").read_text("utf-8"))["changes"] == found.changes


def test_a_file_that_belongs_to_no_image_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    (tmp_path / "masks" / "stray.png").write_bytes(b"")
    assert main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "1 file belongs to no image" in said and "next: remove these files" in said


def test_a_link_in_place_of_a_mask_and_a_changed_configuration(tmp_path: Path) -> None:
    fill(tmp_path)
    mask = tmp_path / "masks" / "a.png"
    mask.rename(tmp_path / "elsewhere.png")
    mask.symlink_to(tmp_path / "elsewhere.png")
    assert verify_folder(tmp_path).changes == {"a": "the mask is a symbolic link"}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "adcam": "1"}))
    assert "another configuration" in verify_folder(tmp_path).changes["x.jpg"]


def test_a_run_that_has_not_ended_is_not_sound(tmp_path: Path) -> None:
    fill(tmp_path, leave_out=1)
    assert verify_folder(tmp_path).unknown == 1 and not verify_folder(tmp_path).is_sound
    fill(tmp_path / "shards", Shard(0, 2))
    found = verify_folder(tmp_path / "shards")
    assert found.others == ["shard 1/2 was not started"] and not found.is_sound


@pytest.mark.parametrize("command", ["verify", "status", "merge"])
def test_what_is_no_output_folder(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "holds no run: there is no config.json" in capsys.readouterr().err
    assert main([command, str(tmp_path / "absent")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_status_of_a_run_at_work_killed_and_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OutputFolder(tmp_path, CONFIG) as folder:
        folder.start(IDS)
        folder.note(lines=folder.num_lines)
        os.utime(tmp_path / ".adcam-lock", (1000, 1000))
        add(folder, "a")
        add(folder, "b c", "failed")
        os.utime(tmp_path / "manifest.jsonl", (1004, 1004))
        status = read_status(tmp_path)
        assert (status.images, status.ok, status.failed, status.missing) == (4, 1, 1, 2)
        assert status.rate == 0.5 and status.seconds_left == 4
        assert main(["status", str(tmp_path)]) == 1
        printed = capsys.readouterr().out
        assert "1 of 4 images done, 1 failed, 2 missing\n0.50 images/s, 0:00:04 left" in printed
        assert f"at work: process {os.getpid()}" in printed
        lock = (tmp_path / ".adcam-lock").read_bytes()
        # A clock that went back gives no rate.
        os.utime(tmp_path / "manifest.jsonl", (900, 900))
        assert read_status(tmp_path).rate is None
    assert read_status(tmp_path).shards[0].describe() == "interrupted"
    (tmp_path / ".adcam-lock").write_bytes(lock)
    assert read_status(tmp_path).shards[0].describe() == "killed"
    with OutputFolder(tmp_path, CONFIG) as folder:
        assert folder.was_killed
        folder.start(IDS)
        add(folder, "sub/ü")
        add(folder, "x.jpg")
        folder.finish(IDS)
    assert main(["status", str(tmp_path), "--json", str(tmp_path / "s.json")]) == 1
    assert "3 of 4 images done, 1 failed, 0 missing" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "s.json").read_text())
    assert numbers["missing"] == 0 and numbers["shards"][0]["state"] == "done"
    with OutputFolder(tmp_path, CONFIG) as folder:
        folder.start(IDS)
        add(folder, "b c")
        folder.finish(IDS)
    assert main(["status", str(tmp_path)]) == 0


def test_status_of_shards(tmp_path: Path) -> None:
    fill(tmp_path, Shard(0, 3))
    with OutputFolder(tmp_path, CONFIG, shard=Shard(1, 3)) as folder:
        folder.start(IDS)
        described = [shard.describe() for shard in read_status(tmp_path).shards]
        assert described[0] == "done" and described[2] == "not started"
        assert (
            described[1].startswith("at work") or read_status(tmp_path).shards[1].state.owned == 0
        )
    assert format_seconds(3723.4) == "1:02:03"


def test_a_folder_without_a_plan_is_what_its_manifest_lists(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "plan.json").unlink()
    assert verify_folder(tmp_path).is_sound
    status = read_status(tmp_path)
    assert (status.images, status.ok, status.failed, status.missing) == (None, 3, 1, None)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "plan.json").write_text('{"images": "4"}')
    with pytest.raises(AdcamError, match=r"plan\.json: not the plan of a run"):
        read_status(tmp_path)


def test_the_log_and_the_metrics_of_a_run(tmp_path: Path) -> None:
    log, metrics = tmp_path / "logs" / "run.jsonl", tmp_path / "run.prom"
    entry: dict[str, Any] = {"id": "ü", "status": "ok", "mask": "12"}
    with Observer(log, metrics, {"shard": '0/2"\n'}) as observer:
        observer.start({"config": "ab"}, left=2, skipped=1)
        observer.image(entry, {"decode": 0.25, "write": 0.5})
        observer.image({"id": "b", "status": "failed", "error": "x"}, {"decode": 0.25})
    with pytest.raises(KeyError), Observer(log) as observer:
        observer.start({}, left=1, skipped=0)
        raise KeyError
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["start", "image", "image", "end", "start", "end"]
    start, done, failed, end = lines[:4]
    assert start["versions"]["torch"] and start["config"] == "ab" and start["process"] > 0
    assert (done["id"], done["mask"], done["seconds"]["write"]) == ("ü", "12", 0.5)
    assert failed["error"] == "x"
    assert end["images"] == {"ok": 1, "failed": 1, "skipped": 1} and end["left"] == 0
    assert end["seconds"] == {"decode": 0.5, "write": 0.5}
    assert (end["reason"], lines[-1]["reason"]) == ("done", "KeyError")
    text = metrics.read_text("utf-8")
    assert 'adcam_images_total{shard="0/2\\"\\n",status="ok"} 1' in text
    assert 'adcam_step_seconds_total{shard="0/2\\"\\n",step="decode"} 0.5' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .*|\w+\{(\w+="[^\n]*",?)*\} [\d.]+', line), line
