"""The files of a project: where they are, and what its config says of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adcam.errors import AdcamError
from adcam.options import from_section
from adcam.plain_config import anchor_paths, read_plain_config
from adcam.settings import DataSettings

CONFIG_NAME = "adcam.toml"
"""The config of a project; where it lies, commands run without options."""

LISTS = "lists"
"""The folder of a project with its lists and labels."""


@dataclass(frozen=True)
class Project:
    """A folder with a config, and where commands without options put what they make.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """What `adcam init` writes, and everything else reads."""
        return self.folder / CONFIG_NAME

    @property
    def work_dir(self) -> Path:
        """Where `adcam train` puts checkpoints and logs."""
        return self.folder / "work"

    @property
    def classifier(self) -> Path:
        """What `adcam train` makes."""
        return self.work_dir / "classifier.safetensors"

    @property
    def out(self) -> Path:
        """The output folder of `adcam generate`."""
        return self.folder / "out"

    @property
    def coco(self) -> Path:
        """What `adcam convert` makes of the masks."""
        return self.folder / "coco.json"

    @property
    def labelled(self) -> Path:
        """The list of all images with labels: train, val and copies of them."""
        return self.folder / LISTS / "labelled.txt"

    def read_data(self) -> DataSettings:
        """The section ``data`` of the config.

        Raises:
            AdcamError: The config is damaged, has no such section, or keys that do not exist.
        """
        values = anchor_paths(read_plain_config(self.config), self.folder)
        try:
            return from_section(DataSettings, values.get("data", {}), "data")
        except AdcamError as error:
            raise AdcamError(f"{self.config}: {error}") from error


def open_project(folder: str | Path) -> Project | None:
    """The project in a folder, ``None`` where there is none."""
    project = Project(Path(folder))
    return project if project.config.is_file() else None


def refuse_existing(project: Project) -> None:
    """Refuse a folder that is a project already.

    Raises:
        AdcamError: It has a config.
    """
    if project.config.exists():
        raise AdcamError(
            f"{project.config} is there already; --overwrite replaces it and the lists beside it, "
            "or name another folder"
        )
