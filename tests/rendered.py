"""A Markdown page as a code host shows it: its width, fonts and tables."""

from __future__ import annotations

from pathlib import Path

import markdown

WIDTH = 980
"""Pixels of the column of text."""
STYLE = """
body { margin: 0; }
article { box-sizing: border-box; width: 980px; padding: 32px; font: 16px/1.5 "Segoe UI", Helvetica, Arial, sans-serif; }
article * { box-sizing: border-box; }
table { border-collapse: collapse; display: block; width: max-content; max-width: 100%; overflow: auto; }
td, th { border: 1px solid #d1d9e0; padding: 6px 13px; }
pre { padding: 16px; overflow: auto; font-size: 85%; line-height: 1.45; background: #f6f8fa; border-radius: 6px; }
code { font: 85% ui-monospace, "Liberation Mono", Menlo, monospace; background: #818b981f; padding: .2em .4em; }
pre code { font-size: 100%; background: none; padding: 0; white-space: pre; }
img { max-width: 100%; vertical-align: middle; }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; }
a { color: #0969da; text-decoration: none; }
"""


def as_html(page: Path) -> str:
    body = markdown.markdown(page.read_text(encoding="utf-8"), extensions=["tables", "fenced_code", "toc"])
    base = page.parent.resolve().as_uri()
    return f'<!doctype html><meta charset="utf-8"><base href="{base}/"><style>{STYLE}</style><article>{body}</article>'
