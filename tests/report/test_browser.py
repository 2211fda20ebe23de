"""The page in a real browser, without a network."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsetime.report import write_report

from .fabricate import fabricate, fabricate_stream

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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, three methods, two seeds, and two more delta configurations, close to others in the plot."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        fabricate(folder / f"{data}-{method}-{seed}", data=data, method=method, seed=seed)
        for data in ("jhmdb", "ut_interaction")
        for method in ("dense", "spatial_l1", "delta")
        for seed in (0, 1)
    ]
    for penalty, density, right in ((1.0, 0.27, 18), (40.0, 0.05, 9)):
        path = folder / f"jhmdb-delta-p{penalty:g}"
        runs.append(fabricate(path, data="jhmdb", penalty=penalty, density=density, right=right))
    streams = [
        fabricate_stream(folder / f"{name}.json", video=f"{name}_with_a_name_of_some_length.mp4") for name in ("a", "b")
    ]
    write_report(runs, folder / "report.html", streams=streams)
    return folder / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    size(browser, 1280, 900)
    emulate(browser, "light")
    browser.get(report.as_uri())
    wait(browser, "[...document.querySelectorAll('.maps')].every((block) => block.dataset.drawn)")
    return browser


def size(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    frames(browser)


def emulate(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    frames(browser)


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(f"return {condition}"))


def test_nothing_is_fetched_and_nothing_fails(page: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # Chromium's own first page asks for things too.
    asked = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]
    assert any(url.endswith("report.html") for url in asked)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []


def test_there_is_a_mark_for_each_run_where_its_figures_say(page: Any) -> None:
    # Pixels against the axes' own tick labels: what a reader would measure with a ruler.
    facets = page.execute_script(
        """
        const middle = (box, from, to) => (box[from] + box[to]) / 2;
        return [...document.querySelectorAll("svg.scatter[data-quantity=density]")].map((plot) => ({
          marks: [...plot.querySelectorAll(".mark")].map((mark) => {
            const box = mark.getBoundingClientRect();
            return {kind: mark.getAttribute("class"), x: +mark.dataset.x, y: +mark.dataset.y,
                    left: middle(box, "left", "right"), top: middle(box, "top", "bottom")};
          }),
          ticks: [...plot.querySelectorAll(".tick")].map((tick) => {
            const box = tick.getBoundingClientRect();
            return {value: +tick.textContent, across: tick.classList.contains("middle"),
                    left: middle(box, "left", "right"), top: middle(box, "top", "bottom")};
          }),
        }));
        """
    )
    assert [sum("run" in mark["kind"] for mark in facet["marks"]) for facet in facets] == [8, 6]
    assert [sum("mean" in mark["kind"] for mark in facet["marks"]) for facet in facets] == [3, 3]
    for facet in facets:
        x0, x1 = [tick for tick in facet["ticks"] if tick["across"]][:2]
        y0, y1 = [tick for tick in facet["ticks"] if not tick["across"]][:2]
        for mark in facet["marks"]:
            across = x0["left"] + (mark["x"] - x0["value"]) / (x1["value"] - x0["value"]) * (x1["left"] - x0["left"])
            down = y0["top"] + (100 * mark["y"] - y0["value"]) / (y1["value"] - y0["value"]) * (y1["top"] - y0["top"])
            assert mark["left"] == pytest.approx(across, abs=1.0)
            assert mark["top"] == pytest.approx(down, abs=1.5)


def test_the_axis_can_be_logarithmic(page: Any) -> None:
    places = """
        const middle = (box) => (box.left + box.right) / 2;
        return [...document.querySelectorAll("svg.scatter")].filter((plot) => plot.getBoundingClientRect().width)
          .map((plot) => [plot.dataset.quantity, ...[...plot.querySelectorAll(".mark")]
            .map((mark) => [+mark.dataset.x, middle(mark.getBoundingClientRect())])]);
    """
    assert {plot[0] for plot in page.execute_script(places)} == {"density"}
    choose(page, "#quantity", "log")
    plots = page.execute_script(places)
    assert {plot[0] for plot in plots} == {"log"}
    (a, at_a), (b, at_b), (c, at_c) = sorted(plots[0][1:])[0], sorted(plots[0][1:])[-1], sorted(plots[0][1:])[4]
    share = math.log(c / a) / math.log(b / a)
    assert (at_c - at_a) / (at_b - at_a) == pytest.approx(share, abs=0.01)


def choose(page: Any, selector: str, value: str) -> None:
    page.execute_script(
        """
        const select = document.querySelector(arguments[0]);
        select.value = arguments[1];
        select.dispatchEvent(new Event("change", {bubbles: true}));
        """,
        selector,
        value,
    )


def test_bars_are_as_long_as_their_density(page: Any) -> None:
    bars = page.execute_script(
        """
        return [...document.querySelectorAll("#layers [data-task]:not([hidden]) rect.bar:not(.macs)")].map((bar) =>
          [+bar.dataset.value, bar.getBoundingClientRect().width / bar.ownerSVGElement.getBoundingClientRect().width]);
        """
    )
    assert len(bars) == 28 * 5  # 28 layers, 5 configurations
    for density, length in bars:
        assert length == pytest.approx(density, abs=0.005)


def test_one_task_at_a_time_the_same_everywhere(page: Any) -> None:
    shown = "return [...document.querySelectorAll('[data-task]')].filter((b) => !b.hidden).map((b) => b.dataset.task)"
    assert set(page.execute_script(shown)) == {"jhmdb · mobilenet_v1_025"}
    choose(page, "#maps select.task", "ut_interaction · mobilenet_v1_025")
    assert page.execute_script(shown) == ["ut_interaction · mobilenet_v1_025"] * 3
    values = page.execute_script("return [...document.querySelectorAll('select.task')].map((select) => select.value)")
    assert set(values) == {"ut_interaction · mobilenet_v1_025"}


def test_the_task_of_the_headline_is_shown_first(browser: Any, tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / "a", data="jhmdb")]
    runs += [fabricate(tmp_path / method, data="ut_interaction", method=method) for method in ("dense", "delta")]
    write_report(runs, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    values = browser.execute_script("return [...document.querySelectorAll('select.task')].map((s) => s.value)")
    assert values == ["ut_interaction · mobilenet_v1_025"] * 3


def test_a_section_without_the_task_keeps_its_own(browser: Any, tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / "a", data="jhmdb"), fabricate(tmp_path / "b", data="other", pictures=False)]
    runs.append(fabricate(tmp_path / "c", data="ut_interaction"))
    write_report(runs, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    choose(browser, "#layers select.task", "other · mobilenet_v1_025")
    shown = "return [...document.querySelectorAll('[data-task]')].filter((b) => !b.hidden).map((b) => b.dataset.task)"
    names = [task.partition(" ")[0] for task in browser.execute_script(shown)]
    assert names == ["other", "jhmdb", "other"]  # layers, maps, learning curves


PIXELS = """
    const canvas = document.querySelectorAll(".maps:not([hidden]) canvas")[arguments[0]];
    const {data, width, height} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    // Frames are drawn grey, so what has a colour is the overlay: its left end, as a share of the width.
    let left = width, count = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (Math.abs(data[i] - data[i + 2]) > 24) { left = Math.min(left, (i / 4) % width); count++; }
    }
    return [left / width, count / (width * height)];
"""


def test_the_slider_moves_the_overlay_with_the_change(page: Any) -> None:
    def at(frame: int) -> tuple[float, float]:
        page.execute_script(
            """
            const slider = document.querySelector(".maps:not([hidden]) [data-role=frame]");
            slider.value = arguments[0];
            slider.dispatchEvent(new Event("input", {bubbles: true}));
            """,
            frame,
        )
        wait(page, f"document.querySelector('.maps:not([hidden])').dataset.drawn.endsWith('/{frame}')")
        left, area = page.execute_script(PIXELS, 2)
        return left, area

    def texture() -> float:
        """How uneven the picture is where the square stood in the first frame."""
        return page.execute_script(
            """
            const canvas = document.querySelectorAll(".maps:not([hidden]) canvas")[2], size = canvas.width / 128;
            const box = [10 * size, 42 * size, 26 * size, 28 * size];
            const {data} = canvas.getContext("2d").getImageData(...box);
            const grey = [...data].filter((_, i) => i % 4 === 0);
            const mean = grey.reduce((sum, value) => sum + value) / grey.length;
            return Math.sqrt(grey.reduce((sum, value) => sum + (value - mean) ** 2, 0) / grey.length);
            """
        )

    choose(page, ".maps:not([hidden]) [data-role=layer]", "features_0_2")
    # The square of 32 of 128 pixels stands at 8 + 10 t; a position of the map is 2 pixels.
    for frame in (1, 5):
        left, area = at(frame)
        assert left == pytest.approx((8 + 10 * frame) / 128, abs=0.02)
        assert area == pytest.approx((32 / 128) ** 2, abs=0.01)
    assert texture() > 8  # the ground, and no longer the square
    said = page.find_element("css selector", ".maps:not([hidden]) [data-role=place]").text
    assert said == "frame 6 of 8"


def test_the_layer_can_be_chosen(page: Any) -> None:
    before = page.execute_script("return document.querySelector('.maps canvas').toDataURL()")
    options = page.execute_script("return [...document.querySelector('[data-role=layer]').options].map((o) => o.value)")
    assert options == ["features_0_2", "features_3_pointwise_2"]
    first = page.execute_script("return document.querySelector('[data-role=layer]').value")
    other = next(option for option in options if option != first)
    choose(page, "[data-role=layer]", other)
    wait(page, f"document.querySelector('.maps').dataset.drawn.startsWith('{other}/')")
    assert page.execute_script("return document.querySelector('.maps canvas').toDataURL()") != before
    assert "positions" in page.find_element("css selector", ".maps [data-role=says]").text


def test_a_click_sorts_numbers_as_numbers(page: Any) -> None:
    def column(name: str) -> list[str]:
        return page.execute_script(
            """
            const table = document.querySelector("#runs table");
            const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
            return [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.order);
            """,
            name,
        )

    buttons = {b.text: b for b in page.find_elements("css selector", "#runs thead button")}
    densities = [float(value) for value in column("ops")]
    buttons["ops"].click()
    assert [float(value) for value in column("ops")] == sorted(densities)
    buttons["ops"].click()
    assert [float(value) for value in column("ops")] == sorted(densities, reverse=True)
    head = page.find_element("css selector", "#runs th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    names = column("run")
    page.execute_script("arguments[0].click()", buttons["run"])
    assert column("run") == sorted(names)


def test_the_slowest_operations_are_found_by_a_click(page: Any) -> None:
    page.execute_script("document.querySelector('#streams details').open = true")
    head = page.find_elements("css selector", "#streams details[open] thead button")
    by_title = {button.text: button for button in head}
    for _ in range(2):
        page.execute_script("arguments[0].click()", by_title["ms"])
    first = "return [...document.querySelectorAll('#streams details[open] .tall tbody tr')].slice(0, 2)"
    first += ".map((row) => [...row.cells].slice(0, 4).map((cell) => cell.textContent.trim()))"
    # 0.1 + 0.2 + ... + 3.0 = 46.5 ms
    assert page.execute_script(first) == [
        ["features_29", "conv2d", "3.00", "6.5\u202f%"],
        ["features_28", "conv2d", "2.90", "6.2\u202f%"],
    ]
    page.execute_script("arguments[0].click()", by_title["operation"])
    assert [row[0] for row in page.execute_script(first)] == ["features_0", "features_1"]


def test_a_mark_says_what_it_is(page: Any) -> None:
    point_at(page, "svg[data-quantity=density] .mark.run")
    assert tip(page).startswith("jhmdb-dense-0\n0.665 of operations, 51.7\u202f% accuracy")
    point_at(page, "svg.curves")
    assert tip(page).startswith("epoch ")
    assert "with penalty: " in tip(page)
    page.execute_script("scrollBy(0, 50)")
    frames(page)
    assert tip(page) == ""


def test_a_mark_in_focus_says_what_it_is(page: Any) -> None:
    # Focus scrolls the page, and scrolling hides tips: not this one.
    page.execute_script("scrollTo(0, document.body.scrollHeight)")
    frames(page)
    page.execute_script("document.querySelector('svg[data-quantity=density] .mark.run').focus()")
    frames(page)
    assert tip(page).startswith("jhmdb-dense-0\n0.665 of operations, 51.7\u202f% accuracy")


def test_a_pointer_that_rests_hides_no_tip(page: Any) -> None:
    """As when the page moves under it; one that moves away does."""
    page.execute_script("""
        window.away = (x) => document.body.dispatchEvent(
          new PointerEvent("pointermove", { clientX: x, clientY: 5, bubbles: true }));
        away(5);
        document.querySelector('svg[data-quantity=density] .mark.run').focus();
        away(5);
    """)
    assert tip(page).startswith("jhmdb-dense-0")
    page.execute_script("away(6)")
    assert tip(page) == ""


def point_at(page: Any, selector: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    element = page.find_element("css selector", selector)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(page).move_to_element(element).perform()
    frames(page)


def frames(page: Any) -> None:
    """Until two frames were drawn: the page has then been told of scrolls and of where the pointer is."""
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def tip(page: Any) -> str:
    """What the tip says; nothing where it is hidden."""
    return page.find_element("id", "tip").text


NOT_ON_TOP = """
    // Pairs of texts of one chart whose boxes overlap by more than a pixel.
    const found = [];
    for (const plot of document.querySelectorAll("svg.plot")) {
      const texts = [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()])
        .filter(([, box]) => box.width);
      for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
        const [a, b] = [texts[i][1], texts[j][1]];
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 3) found.push([texts[i][0], texts[j][0]]);
      }
    }
    return found;
"""
OUTSIDE = """
    // Texts that stick out of the window without a box of their own that scrolls.
    return [...document.querySelectorAll("body *")].filter((item) => {
      const box = item.getBoundingClientRect();
      return box.width && (box.right > innerWidth + 1 || box.left < -1) && !item.closest(".scroll, pre");
    }).map((item) => item.outerHTML.slice(0, 80));
"""


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_it_fits_the_window(page: Any, width: int) -> None:
    size(page, width, 844)
    for details in page.find_elements("css selector", "details"):
        page.execute_script("arguments[0].open = true", details)
    across, inner = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert inner == width
    assert across <= inner
    assert page.execute_script(OUTSIDE) == []
    if width >= 390:
        for quantity in ("density", "log", "macs"):
            choose(page, "#quantity", quantity)
            assert page.execute_script(NOT_ON_TOP) == []


def test_it_follows_light_and_dark(page: Any) -> None:
    def brightness(selector: str, part: str) -> float:
        script = (
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/[\\d.]+/g).map(Number)"
        )
        r, g, b = page.execute_script(script, selector, part)[:3]
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert brightness("html", "backgroundColor") > 240
    assert brightness(".finding", "color") < 80
    emulate(page, "dark")
    assert brightness("html", "backgroundColor") < 40
    assert brightness(".finding", "color") > 200
    assert brightness(".tick", "fill") > 140


def test_a_page_with_almost_nothing_works(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    write_report([tmp_path / "bare"], tmp_path / "report.html")
    browser.get_log("browser")
    browser.get((tmp_path / "report.html").as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert "No run has been evaluated" in browser.find_element("id", "finding").text
