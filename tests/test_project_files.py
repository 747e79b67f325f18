"""Files that people and platforms look for: the citation, the issue templates, the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import adcam

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_citation_is_of_this_version_and_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == adcam.__version__
    papers = citation["references"]
    assert [paper["identifiers"][0]["value"] for paper in papers] == [
        "arXiv:2211.10931",
        "arXiv:2103.14862",
        "arXiv:2009.12063",
    ]
    for paper in papers:
        number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        assert paper["url"] == f"https://arxiv.org/abs/{number}"
        assert all({"given-names", "family-names"} == set(a) for a in paper["authors"])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    if path.name == "config.yml":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "labels", "body"} == set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) >= 2
    assert all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.checkout
def test_there_is_a_template_for_each_kind_of_issue() -> None:
    assert {path.name for path in TEMPLATES} == {
        "bug.yml", "config.yml", "feature.yml", "question.yml",
    }  # fmt: skip


def test_security_page_names_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w./]+\.py)`", page)
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_robustness_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 100
    assert named - set(re.findall(r"^def (test_\w+)\(", tests, flags=re.MULTILINE)) == set()


def test_glossary_is_sorted_and_defines_a_word_once() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    for section in page.split("\n## ")[1:]:
        words = re.findall(r"(?m)^\| \*\*(.+?)\*\*", section)
        assert words == sorted(words, key=str.casefold), section.splitlines()[0]
    words = re.findall(r"(?m)^\| \*\*(.+?)\*\*", page)
    assert len(words) == len(set(words)) > 30


def test_glossary_is_linked_from_the_pages_that_people_read_first() -> None:
    assert "docs/glossary.md" in (ROOT / "README.md").read_text("utf-8")
    assert "](glossary.md)" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
