"""What mkdocs does not do by itself for the site of docs/ (`make site`). mkdocs loads this file as a hook.

    docs/NAME.md links to ../configs/x.yaml  ->  a page repository/configs/x.yaml.md with the file, and a link to that page
    docs/commands.md has a marker            ->  the tables of `reference` in its place

Pages are written for a reader of the repository: they link to its files by relative paths. The site has no repository beside
it, so it gets copies of the files that are linked to. Markdown pages become pages, whose own links are followed too. Pictures
stay pictures. All other text is shown with its colours. A folder becomes its README.md, or a list of its files.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference  # beside this file
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
COPIES = "repository/"
"""Folder of the site for what lies outside of docs/."""
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")
"""Pages of mkdocs.yml's nav outside of docs/. They are served whether a page links to them or not."""
AS_THEY_ARE = {".svg", ".png", ".jpg", ".gif", ".ico"}
MOST_SHOWN_BYTES = 300_000
"""Larger files are copied, not shown."""
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".sh": "bash",
    ".sbatch": "bash",
    ".json": "json",
}
NAMES = {"Makefile": "make", "Dockerfile": "docker", "run": "bash"}

# A fenced block or a piece of code, which is skipped, or the target of a link.
LINK = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)\s*$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<before>\]\(|^\[[^\]]+\]:\s+|\b(?:src|href)=\")(?P<target>[^)\s\"]+)",
    re.MULTILINE | re.DOTALL,
)


ITEM = re.compile(r"( *)(?:[-*]|\d+\.) ")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as code hosts make them, so that a link works in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to outside of docs/, and what those pages link to."""
    waiting = list(PROJECT_PAGES)
    for file in files.documentation_pages():
        waiting += _linked(DOCS + file.src_uri, file.content_string)
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done or path.startswith(DOCS):
            continue
        done.add(path)
        file = _copy(path, config)
        files.append(file)
        if file.is_documentation_page():
            waiting += _linked(path, file.content_string)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the marker of a reference page, and point links to where the site has their targets."""
    markdown = reference.filled(markdown)
    here = page.file.src_uri
    source = here.removeprefix(COPIES) if here.startswith(COPIES) else DOCS + here

    def moved(path: str, anchor: str) -> str:
        return posixpath.relpath(_place(path), posixpath.dirname(here) or ".") + anchor

    return _apart(_each_link(markdown, source, moved))


def _apart(markdown: str) -> str:
    """Lists as Python-Markdown wants them: behind an empty line, and those inside of others at four spaces.

    Code hosts take a list right below a sentence, and two or three spaces.
    """
    lines: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        mark = re.match(r" *(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif fence:
            fence = "" if line.strip() == fence else fence
        elif item := ITEM.match(line):
            in_list = any(ITEM.match(before) for before in _paragraph(lines))
            if lines and lines[-1].strip() and not in_list:
                lines.append("")
            if 2 <= len(item[1]) < 4:
                line = "    " + line.lstrip()
        lines.append(line)
    return "\n".join(lines)


def _paragraph(lines: list[str]) -> list[str]:
    """The last lines, back to an empty one."""
    empty = next((number for number in range(len(lines) - 1, -1, -1) if not lines[number].strip()), -1)
    return lines[empty + 1 :]


def _linked(source: str, markdown: str) -> list[str]:
    """The files and folders of the repository that a page links to, by their paths in it."""
    found: list[str] = []

    def noted(path: str, anchor: str) -> str:
        found.append(path)
        return path

    _each_link(markdown, source, noted)
    return found


def _each_link(markdown: str, source: str, change: Callable[[str, str], str]) -> str:
    """The text with each link to an existing file of the repository replaced by `change(path, anchor)`.

    `path` is the file that the site shows: of a folder with a README.md, that page. mkdocs names the links that are left and
    lead nowhere.
    """

    def changed(match: re.Match[str]) -> str:
        target, mark, anchor = (match["target"] or "").partition("#")
        if match["code"] or not target or ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("..") or not (ROOT / path).exists():
            return match[0]
        if (ROOT / path / "README.md").exists():
            path = f"{path}/README.md"
        return match["before"] + change(path, mark + anchor if path.endswith(".md") else "")

    return LINK.sub(changed, markdown)


def _place(path: str) -> str:
    """Where the site has a file of the repository, as a page of mkdocs."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    if (ROOT / path).is_dir():
        return f"{COPIES}{path}/index.md"
    return COPIES + path if _is_as_it_is(path) else f"{COPIES}{path}.md"


def _is_as_it_is(path: str) -> bool:
    suffix = Path(path).suffix
    return suffix == ".md" or suffix in AS_THEY_ARE or (ROOT / path).stat().st_size > MOST_SHOWN_BYTES


def _copy(path: str, config: MkDocsConfig) -> File:
    place: Any = {"config": config, "src_uri": _place(path), "inclusion": InclusionLevel.NOT_IN_NAV}
    file = ROOT / path
    if file.is_dir():
        return File.generated(**place, content=_listing(path))
    if _is_as_it_is(path):
        return File.generated(**place, abs_src_path=os.fspath(file))
    language = LANGUAGES.get(file.suffix) or NAMES.get(file.name, "text")
    text = file.read_text(encoding="utf-8").rstrip()
    fence = "~" * 12
    return File.generated(
        **place, content=f"{_front(path)}# `{path}`\n\n{fence} {{.{language} linenums=1}}\n{text}\n{fence}\n"
    )


def _listing(path: str) -> str:
    names = sorted(
        entry.name for entry in (ROOT / path).iterdir() if entry.is_file() and not entry.name.startswith(".")
    )
    rows = "\n".join(f"- [`{name}`]({name})" for name in names)
    return f"{_front(path)}# `{path}/`\n\n{rows}\n"


def _front(path: str) -> str:
    """Not searched: the words of a file would hide those of the pages."""
    return f"---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n"
