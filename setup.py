"""Package metadata. Settings of the development tools are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Put configs/ inside the package, where an installation without a checkout finds it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                ROOT / "configs",
                Path(self.build_lib, "adcam", "configs"),
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )


def read_version() -> str:
    """Return the version that adcam/version.py states, without importing the package."""
    namespace: dict[str, str] = {}
    exec((ROOT / "adcam" / "version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


# Each lower bound is the release that constraints-lower.txt names; the test suite was run against
# exactly that set, on Python 3.10. constraints.txt pins the current set that `make` installs.
#
# What PseudoLabeler, the metrics, and the commands generate, boxes, evaluate and convert need.
CORE = [
    "torch>=2.6",
    # timm depends on it, and it resizes images.
    "torchvision>=0.21",
    "timm>=1.0.23",
    "numpy>=2.0",
    "scipy>=1.14",
    # Compiles the dense CRF and the boxes on the user's machine; its wheels hold LLVM.
    "numba>=0.61",
    # Instructions that Numba has no name for; the version is Numba's choice.
    "llvmlite>=0.44",
    "Pillow>=11.0",
    "safetensors>=0.5",
    "rich>=13.9",
    # Completion of commands and options in shells.
    "shtab>=1.10",
    # Configs of plain values (--safe-config) may be YAML; timm depends on it anyway.
    "PyYAML>=6.0",
    # Reports are pages; torch depends on both anyway.
    "Jinja2>=3.1",
    "MarkupSafe>=2.1",
    # Configs that `adcam init` writes; from Python 3.11 on it is part of Python.
    "tomli>=2.0; python_version < '3.11'",
]
# Training, comparisons and their reports, the whole recipe, the demo and its photographs; and
# configs, which mmengine reads.
TRAIN = [
    "onedl-mmengine>=0.10.12",
    # mmengine imports cv2 but does not declare it. The headless build needs no display libraries.
    "opencv-python-headless>=4.10.0.84",
    "tensorboard>=2.18",
    "matplotlib>=3.9",
    "scikit-image>=0.25",
    # COCO's json, which `adcam convert` makes of a project's masks.
    "pycocotools>=2.0.8",
]
# adcam.installation.EXTRAS tells users which of these brings a package that is missing.
EXTRAS = {
    "train": TRAIN,
    # ftfy and regex are imported by mmseg's text tokenizer as soon as mmseg is imported.
    "seg": [
        *TRAIN,
        "onedl-mmsegmentation>=1.4.2",
        "onedl-mmcv>=2.3.6",
        "ftfy>=6.3",
        "regex>=2024.11.6",
    ],
    # Compiled on installation. Its sources do not compile for Python 3.13.
    "crf": ["pydensecrf2>=1.1; python_version < '3.13'"],
    # Draws COCO's annotations.
    "coco": ["pycocotools>=2.0.8"],
    # Runs over several machines; images and masks in Parquet files, tar archives and behind URLs.
    "ray": ["ray[data]>=2.60", "pyarrow>=17.0", "fsspec>=2024.6"],
    # CLIP as a classifier, image classifiers of Hugging Face.
    "clip": ["open_clip_torch>=3.0", "transformers>=5.0"],
    # Other people's packages that tests exchange maps, networks and masks with, and notebooks.
    "peers": [
        "open_clip_torch>=3.0",
        "transformers>=5.0",
        "grad-cam>=1.5.5",
        # The last one for Python 3.10 wants NumPy 1.
        "torchcam>=0.5.0; python_version >= '3.11'",
        "datasets>=4.0",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=6.29",
    ],
    # The documentation as a site (`make docs`). Its packages want Python 3.11.
    "docs": [
        "mkdocs>=1.6.1; python_version >= '3.11'",
        "mkdocs-material>=9.6; python_version >= '3.11'",
        "mkdocstrings[python]>=1.0; python_version >= '3.11'",
    ],
    "dev": [
        *TRAIN,
        "pytest>=8.3",
        "pytest-timeout>=2.3.1",
        "pytest-xdist>=3.8",
        "hypothesis>=6.100",
        "packaging>=24.2",
        "setuptools>=77",
        "ruff>=0.17.5,<0.18",
        "mypy>=2.4",
        "pre-commit>=4.0",
        # Drives a headless Chromium, which the system brings, for tests of the report.
        "playwright>=1.49",
        # A server that speaks S3, for tests, and what reads from it.
        "moto[server,s3]>=5.0",
        "s3fs>=2024.6",
    ],
}

setup(
    name="adcam",
    version=read_version(),
    description="Pixel masks from image-level labels: ViT class maps refined by attention.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "THIRD_PARTY_NOTICES.md"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["adcam", "adcam.*"]),
    package_data={"adcam": ["py.typed", "report/*.j2", "report/page/*", "assets/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.10,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["adcam = adcam.cli:main"]},
)
