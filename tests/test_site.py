"""The site of docs/: it builds without a warning, and its pages show what was meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: links, anchors and the nav were checked."""
    made = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", made)
    assert done.returncode == 0, done.stderr
    return made


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


def test_each_page_and_what_it_links_to_is_there(site: Path) -> None:
    found = pages(site)
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= found.keys()
    assert "class Optimizer" in re.sub("<[^>]*>", "", found["repository/src/maskloom/config.py.html"])
    links = {
        f"{name}: {link}"
        for name, text in found.items()
        for link in re.findall(r'(?:href|src)="([^"#?:]+)[#?]?[^":]*"', text)
        if name != "404.html" and not (site / name).parent.joinpath(link).exists()
    }
    assert not links


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = r'<(?:link|script|img|iframe)\b[^>]*?(?:href|src)="(?:https?:)?//[^"]*"'
    for name, text in pages(site).items():
        assert not re.search(loaded, text), name


def test_lists_and_tables_are_shown_as_such(site: Path) -> None:
    """Also those right below a sentence, which the site's Markdown takes as a part of it."""
    for name, text in pages(site).items():
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            assert not re.search(r"^\s*(?:[-*] |\d+\. |\|)", paragraph, re.MULTILINE), f"{name}: {paragraph}"


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    config = tmp_path / "mkdocs.yml"
    settings = (ROOT / "mkdocs.yml").read_text()
    config.write_text(
        re.sub(r"(?s)^nav:.*", "", settings, flags=re.MULTILINE).replace("tools/site.py", f"{ROOT}/tools/site.py")
    )
    (docs / "index.md").write_text("# One\n\n[to nowhere](../configs/none.yaml) and [to no heading](#two)\n")
    done = build(config, tmp_path / "site")
    assert done.returncode != 0
    assert "none.yaml" in done.stderr and "#two" in done.stderr
