"""The files that stand beside the code: licence, changelog, citation, templates, hooks. They agree with each other."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import maskloom

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert (
        hashlib.sha256(text).hexdigest() == "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
    )  # as the ASF has it
    assert PROJECT["license"] == citation()["license"] == "Apache-2.0"


def test_the_citation_has_what_its_format_asks_for() -> None:
    given = citation()
    assert given["cff-version"] == "1.2.0"
    assert given.keys() >= {"message", "title", "authors"}
    assert given.keys() <= {
        "cff-version",
        "message",
        "title",
        "type",
        "authors",
        "version",
        "license",
        "abstract",
        "keywords",
    }
    assert [author["name"] for author in given["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert all(isinstance(word, str) for word in given["keywords"])


def test_one_version_everywhere() -> None:
    assert citation()["version"] == maskloom.__version__
    heads = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", head) for head in heads[1:])
    kinds = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # those of Keep a Changelog


def test_the_hook_runs_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (hook,) = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert hook["entry"] == "make lint"
    assert re.search(r"^lint:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert all(re.search(hook["files"], name) for name in ("src/maskloom/cli.py", "README.md", "Makefile"))


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[bf]*.yml")), ids=lambda path: path.stem
)
def test_forms_of_issues(form: Path) -> None:
    given = yaml.safe_load(form.read_text())
    assert given.keys() >= {"name", "description", "body"}
    fields = [field["id"] for field in given["body"]]
    assert len(fields) == len(set(fields)) > 1
    assert all(field["attributes"]["label"] for field in given["body"])


PAGES = [
    *sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))),
    "benchmarks/README.md",
    ".github/PULL_REQUEST_TEMPLATE.md",
]
FOLDERS = ("src", "tests", "docs", "configs", "tools", "examples", "launcher", "docker", "benchmarks", ".ci")


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """All files and folders (which end with a slash) of the repository that a page may name, from its root."""
    found = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder, *(ROOT / folder).rglob("*"))
        if not {".cache", "__pycache__"} & set(path.parts)
    ]
    return [path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in found]


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_what_the_pages_name_exists(page: str, paths: list[str]) -> None:
    """Links and their anchors, files and folders of the repository, tests, targets of make."""
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        assert not anchor or linked.suffix != ".md" or anchor in anchors(linked), f"{page} links to {target}#{anchor}"
    started = rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*"
    for name, test in re.findall(rf"`({started}|(?:[\w-]+/)*[\w-]+\.py|(?:[\w-]+/)+)(?:::(\w+))?`", text):
        if "NAME" not in name and name != "dist/" and ".cache" not in name:
            holding = [path for path in paths if f"/{path}".rstrip("/").endswith(f"/{name}".rstrip("/"))]
            assert holding, f"{page} names {name}"
            assert not test or any(re.search(rf"\b{test}\b", (ROOT / path).read_text()) for path in holding), test
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (?:\w+=\S+ )?([\w-]+)`", text)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_the_modules_that_the_pages_name_exist(page: str) -> None:
    """`maskloom.a.b`, which may end with a name that the module has, and `python -m maskloom.a`."""
    text = (ROOT / page).read_text()
    for name in re.findall(r"(?:`|-m )((?:maskloom|tests|tools)(?:\.\w+)+)", text):
        first, *parts = name.split(".")
        folder = ROOT / "src" / first if first == "maskloom" else ROOT / first
        while parts and (folder / parts[0]).is_dir():
            folder /= parts.pop(0)
        module = folder / f"{parts[0]}.py" if parts else folder
        if not module.exists():  # a name of the package
            module = folder / "__init__.py"
            assert not parts or re.search(rf"\b{parts[0]}\b", module.read_text()), f"{page} names {name}"
        elif len(parts) > 1:
            assert re.search(rf"^(def|class) {parts[1]}\b|^{parts[1]}\b", module.read_text(), re.MULTILINE), (
                f"{page} names {name}"
            )


def test_python_versions_agree() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert listed[0] == oldest
    assert sys.version_info[:2] >= tuple(map(int, oldest.split(".")))


def test_nothing_that_is_tracked_is_ignored() -> None:
    """A file that git ignores but tracks would be missing for whoever adds it anew."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == ""
