"""The page in a real browser, while the command runs."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def size(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")  # it is laid out


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120, 0.05).until(lambda driver: driver.execute_script(f"return {condition}"))


def text(page: Any, name: str) -> str:
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


def press(page: Any, name: str) -> None:
    page.execute_script("document.getElementById(arguments[0]).click()", name)


@pytest.fixture(scope="module")
def shown(watch: Callable[..., Any], small_plan: Path, square: Path) -> Any:
    return watch(small_plan, square)


@pytest.fixture
def page(browser: Any, shown: Any) -> Any:
    """Paused, some frames in."""
    size(browser, 1280, 900)
    browser.get(shown.address)
    wait(browser, "document.getElementById('stage').dataset.drawn")
    wait(browser, "shown.header.frames > 2")
    if text(browser, "play") == "Pause":
        press(browser, "play")
    wait(browser, "shown.header.paused")
    return browser


FRAME = "return shown.header.frames"


def test_nothing_is_fetched_from_elsewhere_and_nothing_fails(page: Any, shown: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    ours = [url for url in sent if url.startswith(shown.address)]
    assert {urlsplit(url).path for url in ours} == {"/", "/page.css", "/page.js"}
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in names if not name.startswith((shown.address, "blob:", "data:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []


def test_it_steps_plays_pauses_and_starts_again(page: Any) -> None:
    before = page.execute_script(FRAME)
    press(page, "step")
    wait(page, f"shown.header.frames === {before + 1}")
    page.find_element("css selector", "body").send_keys("r")
    wait(page, "shown.header.frames === 0")
    assert text(page, "saved") == "\u2013"
    press(page, "step")
    wait(page, "shown.header.frames === 1")
    assert text(page, "density") == "100.0\u202f%"
    press(page, "play")
    wait(page, "shown.header.frames > 4")
    assert text(page, "play") == "Pause"
    page.find_element("css selector", "body").send_keys(" ")
    wait(page, "shown.header.paused")
    at = page.execute_script(FRAME)
    page.execute_async_script("setTimeout(arguments[0], 300)")
    assert page.execute_script(FRAME) == at


def test_figures_are_those_of_the_stream(page: Any) -> None:
    deadline = time.monotonic() + 300
    while page.execute_script("return shown.header.fps_dense") is None:  # the fastest runtime is being looked for
        assert time.monotonic() < deadline
        press(page, "step")
        time.sleep(0.5)
    # All in one look: the answer to the last step may be on its way.
    header, texts, bars = page.execute_script(
        """
        const text = (id) => [id, document.getElementById(id).textContent];
        const texts = Object.fromEntries(["saved", "fps", "fps-dense", "runtime"].map(text));
        return [shown.header, texts, [...document.querySelectorAll(".layer")].map((row) => {
          const track = row.querySelector(".track").getBoundingClientRect();
          const mean = row.querySelector(".mean").getBoundingClientRect();
          return [row.querySelector(".fill").getBoundingClientRect().width / track.width,
                  (mean.left + mean.width / 2 - track.left) / track.width, row.querySelector(".value").textContent];
        })];
        """
    )
    assert texts["saved"] == f"{100 * header['saved']:.1f}\u202f%"
    for name, rate in (("fps", header["fps"]), ("fps-dense", header["fps_dense"])):
        assert float(texts[name]) == pytest.approx(rate, abs=0.051 if rate < 100 else 0.51)  # one digit, or none
    assert texts["runtime"] == header["dense_runtime"]
    assert len(bars) == 3
    for (length, middle, value), density, mean in zip(bars, header["layers"], header["means"], strict=True):
        assert length == pytest.approx(density, abs=0.01)
        assert middle == pytest.approx(mean, abs=0.01)
        assert value == f"{100 * density:.1f}\u202f%"


# The bounding box of what is drawn of the overlay, as shares of the picture, and of coloured pixels in the whole frame.
OVERLAY = """
    const canvas = document.getElementById("work");
    const {data, width, height} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let [left, right, top, bottom] = [width, 0, height, 0];
    for (let i = 3; i < data.length; i += 4) if (data[i]) {
      const [x, y] = [(i >> 2) % width, Math.floor((i >> 2) / width)];
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    }
    return [left / width, right / width, top / height, bottom / height];
"""


def test_the_overlay_is_where_the_square_walks(page: Any) -> None:
    page.execute_script("document.querySelectorAll('.layer')[0].click()")
    wait(page, "shown.header.layer === 0")
    assert "play or step" in text(page, "note")
    press(page, "reset")
    wait(page, "shown.header.frames === 0")
    for number in range(1, 5):
        press(page, "step")
        wait(page, f"document.getElementById('stage').dataset.drawn === '{number}/0'")
    # From 4 * 2 to 4 * 3 + 12 of 64 columns and from 4 to 16 of 48 rows, at half the size and blurred by resizing.
    assert page.execute_script(OVERLAY) == pytest.approx([8 / 64, 24 / 64, 4 / 48, 16 / 48], abs=2.1 / 48)
    assert "of 24 \u00d7 32 places changed" in text(page, "note")
    page.execute_script(
        "const s = document.getElementById('layer'); s.value = 1; s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    wait(page, "shown.header.layer === 1")
    pressed = page.execute_script(
        "return [...document.querySelectorAll('.layer')].map((row) => row.getAttribute('aria-pressed'))"
    )
    assert pressed == ["false", "true", "false"]
    assert page.execute_script("return document.querySelectorAll('.layer')[2].disabled")
    press(page, "overlay")
    assert page.execute_script("return document.getElementById('work').hidden")
    press(page, "overlay")


OUTSIDE = """
    return [...document.querySelectorAll("body *")].filter((item) => {
      const box = item.getBoundingClientRect();
      return box.width && (box.right > innerWidth + 1 || box.left < -1);
    }).map((item) => item.outerHTML.slice(0, 80));
"""
SMALL = """
    const least = (item) => item.classList.contains("layer") ? 24 : 40;
    return [...document.querySelectorAll("#controls button, #controls select, .layer")]
      .filter((item) => item.getBoundingClientRect().height < least(item)).map((item) => item.id || item.title);
"""


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_it_fits_the_window(page: Any, width: int) -> None:
    size(page, width, 844)
    across, inner = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert inner == width
    assert across <= inner
    assert page.execute_script(OUTSIDE) == []
    assert page.execute_script(SMALL) == []
    stage = page.execute_script(
        "const b = document.getElementById('stage').getBoundingClientRect(); return [b.width, b.height, b.bottom]"
    )
    assert stage[0] / stage[1] == pytest.approx(64 / 48, rel=0.02)
    assert stage[2] < 844  # the picture is in sight without scrolling


def test_the_token_leaves_the_address(browser: Any, watch: Callable[..., Any], small_plan: Path, square: Path) -> None:
    shown = watch(small_plan, square, "--host", "0.0.0.0")
    parts = urlsplit(shown.address)
    browser.get(f"http://127.0.0.1:{parts.port}/")
    assert "with its token" in browser.find_element("css selector", "body").text
    browser.get(f"http://127.0.0.1:{parts.port}/?{parts.query}")
    wait(browser, "document.getElementById('stage').dataset.drawn")
    assert browser.current_url == f"http://127.0.0.1:{parts.port}/"
    assert browser.execute_script("return document.cookie") == ""


def test_the_end_is_told(page: Any, shown: Any) -> None:
    shown.interrupt()
    wait(page, "!document.getElementById('state').hidden")
    assert text(page, "state") == "The program has ended."
    assert not any(page.find_element("id", button).is_enabled() for button in ("play", "step", "reset"))
