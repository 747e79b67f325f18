"""Package metadata. Settings of the development tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Return the version that adcam/version.py states, without importing the package."""
    namespace: dict[str, str] = {}
    exec((ROOT / "adcam" / "version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


# Lower bounds are the oldest releases the test suite was run against; constraints.txt pins the
# set that `make` installs.
INSTALL_REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "timm>=1.0.20",
    "numpy>=2.0",
    "scikit-image>=0.25",
    "Pillow>=11.0",
    "onedl-mmengine>=0.10.12",
    "safetensors>=0.5",
    "Jinja2>=3.1",
    "matplotlib>=3.9",
    "rich>=13.9",
]
EXTRAS = {
    "crf": ["pydensecrf2>=1.1; python_version < '3.13'"],
    "seg": ["onedl-mmsegmentation>=1.4.2", "onedl-mmcv>=2.3.6", "ftfy", "regex"],
    "ray": ["ray[data]>=2.40"],
    "docs": ["mkdocs-material>=9.5"],
    "dev": ["pytest>=8.3", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.14", "pre-commit>=4.0"],
}

setup(
    name="adcam",
    version=read_version(),
    description="Pixel masks from image-level labels: ViT class maps refined by attention.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["adcam", "adcam.*"]),
    package_data={"adcam": ["py.typed", "report/*.j2", "assets/*"]},
    python_requires=">=3.10,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["adcam = adcam.cli:main"]},
)
