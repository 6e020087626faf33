"""What TensorBoard's pages hold, in a real browser: one run, then several beside it, one of them of an earlier version.

One browser and one `maskloom monitor` serve the whole file. The later runs appear while it is up.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from maskloom.runs import read_metrics
from maskloom.tags import PINNED, tagged
from maskloom.train.board import Board
from maskloom.viewing.server import first_page

from ..conftest import missing

OLD = Path(__file__).parents[1] / "fixtures" / "runs" / "fdef54a" / "roberta"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server", "--window-size=1920,1200")
WITHIN_S = 120.0
EVALUATED = {"eval/loss", "eval/accuracy"}
"""A run that was not evaluated does not have these."""
ALL_TEXT = """
const found = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE) { found.push(node.textContent.trim()); return; }
  if (["STYLE", "SCRIPT", "TEMPLATE", "NOSCRIPT"].includes(node.tagName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found.filter((text) => text).join("\\n");
"""
"""All text of a page, that in shadow roots included: the tabs of texts and settings have it there."""


@dataclass
class Pages:
    """A browser on a monitor's TensorBoard."""

    browser: webdriver.Chrome
    log: Path
    runs: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The page that was printed."""
        return next(line for line in self.log.read_text().splitlines() if line.startswith("http://"))

    @property
    def base(self) -> str:
        return self.address.partition("?")[0]

    def until(self, what: Callable[[], object]) -> None:
        """Wait until the page is as it should be: a page draws itself bit by bit."""
        deadline_s = time.monotonic() + WITHIN_S
        while True:
            try:
                if what():
                    return
            except Exception:  # an element was drawn anew between two looks
                pass
            if time.monotonic() > deadline_s:
                pytest.fail(f"{self.log.read_text()}\nthe page holds:\n{self.browser.execute_script(ALL_TEXT)}")
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def loaded(self) -> set[str]:
        """The runs of which TensorBoard has read the last of a line's values."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.base}data/plugin/timeseries/tags", timeout=60) as answer:
            tags = json.load(answer)["scalars"]["runTagInfo"]
        return {run for run, its in tags.items() if set(PINNED) - EVALUATED <= set(its)}

    def open(self, address: str) -> None:
        """Load a page anew: it shows what TensorBoard has read by then, and does not refresh itself."""
        self.browser.get("about:blank")  # to go from one tab to another loads nothing anew
        self.browser.get(address)

    def cards(self) -> dict[str, list[str]]:
        """Tag of each pinned card, in their order -> the runs in it."""
        return {
            text(card.find_element(By.TAG_NAME, "tb-truncated-path")): names(card)
            for card in self.browser.find_elements(By.CSS_SELECTOR, "metrics-pinned-view card-view")
        }

    def listed(self) -> list[str]:
        return names(self.browser.find_element(By.TAG_NAME, "runs-data-table"))

    def everything(self) -> str:
        return str(self.browser.execute_script(ALL_TEXT))


def text(element: WebElement) -> str:
    return (element.get_attribute("textContent") or "").strip()


def names(element: WebElement) -> list[str]:
    return [text(row).split()[0] for row in element.find_elements(By.TAG_NAME, "tb-data-table-content-row")]


@pytest.fixture(scope="module")
def pages(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("chromium")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "runs").mkdir()
    (folder / "runs" / "run").symlink_to(trained_run)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    with (folder / "monitor.log").open("wb") as log:
        command = [sys.executable, "-m", "maskloom.cli", "monitor", str(folder / "runs"), "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            found = Pages(browser, folder / "monitor.log", folder / "runs", process)
            found.until(lambda: "Ctrl-C" in found.log.read_text())
            yield found
        finally:
            browser.quit()
    finally:
        process.terminate()
        process.wait(60)


def test_one_run_answers_on_its_first_page(pages: Pages) -> None:
    pages.until(lambda: pages.loaded() == {"run"})
    pages.open(pages.address)
    pages.until(lambda: len(pages.cards()) == 6 and all(pages.cards().values()))
    cards = pages.cards()
    assert tuple(cards) == PINNED
    assert cards["train/loss"] == ["run", "run/held-out"], "training and held-out loss in one card"
    assert all(cards[tag] == ["run"] for tag in PINNED[1:])
    assert pages.listed() == ["run", "run/held-out"]
    assert pages.browser.title == "maskloom: run"


def test_its_texts_say_what_the_run_is(pages: Pages) -> None:
    pages.open(pages.base + "#text")
    pages.until(lambda: "run/restarts" in pages.everything() and "attempt 1 begins" in pages.everything())
    shown = pages.everything()
    assert shown.index("run/config") < shown.index("run/environment") < shown.index("run/restarts")
    assert "hidden_size: 32" in shown
    assert "deepspeed" in shown


def test_its_settings_are_a_row(pages: Pages, trained_run: Path) -> None:
    pages.open(pages.base + "#hparams")
    pages.until(lambda: "held-out loss" in pages.everything() and "0.0050000" in pages.everything())
    shown = pages.everything().splitlines()
    assert {"lr", "global_batch_rows", "seq_len", "mask_rate", "optimizer"} <= set(shown)
    assert {str(trained_run), "12.000", "32.000", "0.15000", "adamw"} <= set(shown)


def test_several_runs_are_side_by_side_an_old_one_among_them(pages: Pages, trained_run: Path) -> None:
    for name in ("second", "third"):
        board = Board(pages.runs / name, name, {"lr": 0.5, "optimizer": "lamb"})
        board.begin_at(0, {"run/config": name})
        for line in read_metrics(trained_run):
            board.log(tagged({key: value for key, value in line.items() if key != "step"}), line["step"])
        board.close()
    (pages.runs / "roberta").symlink_to(OLD)
    expected = ["roberta", "run", "second", "third"]
    pages.until(lambda: pages.log.read_text().count("new run") == 3 and pages.loaded() == set(expected))
    pages.open(first_page(pages.base, is_several=True))
    pages.until(lambda: pages.listed() == expected and pages.cards()["train/loss"] == expected)
    cards = pages.cards()
    assert tuple(cards) == PINNED
    assert cards["train/learning_rate"] == cards["utilization/tokens_per_s"] == expected
    assert cards["eval/loss"] == ["run", "second", "third"], "the old one was not evaluated"
    pages.open(pages.base + "#hparams")
    pages.until(lambda: {"second", "third", "lamb"} <= set(pages.everything().splitlines()))
