"""The site of docs/ builds without a warning, and shows what was meant. It and README.md fit their windows."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.rendered import WIDTH, as_html

ROOT = Path(__file__).parents[1]
DESKTOP, PHONE = 1440, 390
MEASURE = """
<script>
addEventListener("load", () => {
    const found = {};
    for (const frame of document.querySelectorAll("iframe")) {
        const page = frame.contentDocument, wide = [];
        for (const element of page.querySelectorAll("pre, table, img"))
            if (element.scrollWidth > element.clientWidth + 1) wide.push(element.textContent.slice(0, 80));
        found[frame.id] = {width: page.documentElement.scrollWidth, wide: wide};
    }
    document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
<div id="found"></div>
"""


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


@pytest.fixture(scope="module")
def measured(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Page and width -> the width of its content, and the beginnings of blocks that scroll inside of the page."""
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("chromium")
    folder = tmp_path_factory.mktemp("widths")
    (folder / "site").symlink_to(site)
    (folder / "readme.html").write_text(as_html(ROOT / "README.md"))
    shown = [("readme.html", WIDTH)]
    shown += [
        (f"site/{name}.html", width) for name in ("index", "configuration", "commands") for width in (DESKTOP, PHONE)
    ]
    frames = [
        f'<iframe id="{name}@{width}" src="{name}" width="{width}" height="900" style="border:0"></iframe>'
        for name, width in shown
    ]
    (folder / "all.html").write_text(f"<!doctype html>{MEASURE}{''.join(frames)}")
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", (folder / "all.html").as_uri(),
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<div id="found">(.+?)</div>', page)
    assert found, page[:2000]
    answer: dict[str, dict] = json.loads(html.unescape(found[1]))
    assert answer.keys() == {f"{name}@{width}" for name, width in shown}
    return answer


def test_no_page_is_wider_than_its_window(measured: dict[str, dict]) -> None:
    widths = {name: figures["width"] for name, figures in measured.items()}
    assert all(width > 0 for width in widths.values())
    assert {name: width for name, width in widths.items() if width > int(name.partition("@")[2])} == {}


def test_nothing_in_the_readme_has_to_be_scrolled(measured: dict[str, dict]) -> None:
    assert measured[f"readme.html@{WIDTH}"]["wide"] == []


def test_each_page_is_once_in_the_menu() -> None:
    pages = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(pages) > 20
    assert sorted(pages) == sorted(set(pages))
