"""Makes the pictures of TensorBoard in docs/images, from three short runs in a real browser.

    python tools/pictures.py                 # after `make pretrain`; trains the runs first, which takes some minutes
    python tools/pictures.py --only text     # from the runs of before

It needs chromium and chromedriver, and the packages selenium and pillow.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

from maskloom.viewing.links import Links
from maskloom.viewing.server import first_page, serve
from maskloom.world import LOOPBACK

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 200_000
COLOURS = 256
WITHIN_S = 120.0

RUNS = {"quickstart": [], "lr-1e-3": ["optimizer.lr=0.001"], "mask-15": ["masking.rate=0.15"]}
"""Name of a run -> settings in which it differs from the first."""
SETTINGS = (
    "evaluation.every_steps=50",
    "logging.every_steps=10",
    "evaluation.sentences=['This [MASK] returns a list of strings.', 'The value must be [MASK] or None.', "
    "'Returns a new [MASK] with the same shape as the input tensor.']",
)


def train(folder: Path) -> None:
    """Train those of RUNS that are not in `folder`. It is a relative path, as it stands on the pictures."""
    for name, own in RUNS.items():
        if not (folder / name).exists():
            command = [sys.executable, "-m", "maskloom.cli", "train", "configs/quickstart.yaml", "--processes", "2"]
            subprocess.run([*command, f"run_dir={folder / name}", *SETTINGS, *own], check=True)


@contextmanager
def tensorboard(runs: Sequence[Path]) -> Iterator[str]:
    """The address of a TensorBoard over runs."""
    with Links(runs) as links:
        links.refresh()
        yield serve(links.folder, LOOPBACK, 0, "maskloom")


@contextmanager
def browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Chromium with a page of this size, in CSS pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = _found("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(_found("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        driver.quit()


def one_run(runs: Path) -> bytes:
    """The first page of one run."""
    return _first_page([runs / "quickstart"])


def three_runs(runs: Path) -> bytes:
    """The first page of three runs."""
    return _first_page([runs / name for name in RUNS])


def hparams(runs: Path) -> bytes:
    """The table of settings of three runs."""
    with tensorboard([runs / name for name in RUNS]) as url, browser(1920, 480) as driver:
        driver.get(f"{url}#hparams")
        return _drawn(driver, lambda: driver.find_elements(By.TAG_NAME, "tf-hparams-dashboard"))


def text(runs: Path) -> bytes:
    """Sentences that one run filled, and what is below."""
    with tensorboard([runs / "quickstart"]) as url, browser(1600, 1000) as driver:
        driver.get(f"{url}#text")
        return _drawn(driver, lambda: driver.find_elements(By.TAG_NAME, "tf-text-dashboard"))


PICTURES: dict[str, Callable[[Path], bytes]] = {
    "one-run": one_run,
    "three-runs": three_runs,
    "hparams": hparams,
    "text": text,
}


def _first_page(runs: Sequence[Path]) -> bytes:
    """With the pane of settings closed, which leaves the cards more room."""
    with tensorboard(runs) as url, browser(1600, 1050) as driver:
        driver.get(first_page(url, len(runs) > 1))
        cards = "metrics-pinned-view card-view tb-data-table-content-row"
        _wait(lambda: len(driver.find_elements(By.CSS_SELECTOR, cards)) >= 6 * len(runs))
        driver.find_element(By.XPATH, "//button[contains(., 'Settings')]").click()
        return _drawn(driver, lambda: True)


def _drawn(driver: webdriver.Chrome, is_there: Callable[[], object]) -> bytes:
    """A picture of the page, once what it should have is there and two pictures in a row are equal."""
    _wait(is_there)
    before = b""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        time.sleep(3)
        picture: bytes = driver.get_screenshot_as_png()
        if picture == before or time.monotonic() > deadline_s:
            return picture
        before = picture


def _wait(until: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not until():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the page does not show what it should")
        time.sleep(0.2)


def save(picture: bytes, path: Path) -> None:
    """Write a picture with few colours. Raises ValueError if it is too large for a page."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        sys.exit(f"{program} is not installed")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = "folder with the runs, of which those that are not there are trained (default: %(default)s)"
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"), help=where)
    parser.add_argument("--only", choices=PICTURES, nargs="+", default=list(PICTURES), help="which pictures")
    options = parser.parse_args()
    os.chdir(ROOT)
    train(options.runs)
    for name in options.only:
        path = IMAGES / f"tensorboard-{name}.png"
        save(PICTURES[name](options.runs), path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
