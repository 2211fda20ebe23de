"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/* Tips: what a mark, a bar or an epoch says, beside the pointer or the focused mark. */
const tip = document.getElementById("tip");
const saying = (target) => target instanceof Element ? target.closest(".mark[aria-label], .hit[data-tip]") : null;
const says = (item) => item.dataset.tip || item.getAttribute("aria-label");
let shownAt = 0;  // how far the page was scrolled
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  shownAt = scrollY;
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
  const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}
/* Learning curves: the epoch nearest to the pointer, and its values. */
let cursor = null;
function atEpoch(plot, x) {
  const { low, high, lines } = JSON.parse(plot.dataset.curves);
  const box = plot.getBoundingClientRect();
  const wanted = low + (high - low) * (x - box.left) / box.width;
  const epochs = [...new Set(Object.values(lines).flat().map((row) => row[0]))];
  if (!epochs.length) return null;
  const epoch = epochs.reduce((best, each) => Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best);
  cursor = plot.querySelector(".cursor");
  const place = `${100 * (epoch - low) / (high - low)}%`;
  cursor.setAttribute("x1", place);
  cursor.setAttribute("x2", place);
  cursor.setAttribute("visibility", "visible");
  const values = Object.entries(lines).map(([name, rows]) => {
    const row = rows.find((each) => each[0] === epoch);
    return row && `${name}: ${row[1]}${row[2] === row[3] ? "" : ` (${row[2]} to ${row[3]})`}`;
  });
  return [`epoch ${epoch}`, ...values.filter(Boolean)].join("\n");
}
/* Browsers tell of a pointer that rests when the page moves under it: that may show a tip, but hides none. */
let restsAt = "";
function point(event) {
  const place = `${event.clientX} ${event.clientY}`, rests = place === restsAt;
  restsAt = place;
  cursor?.setAttribute("visibility", "hidden");
  const item = saying(event.target);
  const plot = event.target instanceof Element ? event.target.closest("svg.curves") : null;
  const text = item ? says(item) : plot ? atEpoch(plot, event.clientX) : null;
  if (text) showTip(text, event.clientX, event.clientY);
  else if (!rests) tip.hidden = true;
}
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("focusin", (event) => {
  const item = saying(event.target);
  if (!item) return;
  const box = item.getBoundingClientRect();
  showTip(says(item), box.right, box.bottom - 10);
});
document.addEventListener("focusout", () => { tip.hidden = true; });
/* A scroll is told of a frame later: a tip that was shown since, as for a mark that the focus brought into sight, stays. */
document.addEventListener("scroll", () => { if (scrollY !== shownAt) tip.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

/* Tables: a click on a column's title sorts, another one turns the order round. */
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  return a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b, "en", { numeric: true });
};
for (const button of all("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[head.cellIndex].dataset.order;
    body.append(...[...body.rows].sort((a, b) => direction * compare(key(a), key(b))));
  });
}

/* What the horizontal axis of accuracy against operations shows. */
const quantity = document.getElementById("quantity");
quantity?.addEventListener("change", () => {
  document.querySelector(".facets").dataset.shown = quantity.value;
});

/* One data set and network at a time, the same one in every section. */
function showTask(task) {
  for (const block of all("[data-task]")) {
    const known = all("[data-task]", block.parentElement).some((other) => other.dataset.task === task);
    if (known) block.hidden = block.dataset.task !== task;
  }
  for (const select of all("select.task")) {
    if ([...select.options].some((option) => option.value === task)) select.value = task;
  }
}
for (const select of all("select.task")) {
  for (const block of all("[data-task]", select.closest("section"))) block.hidden = block.dataset.task !== select.value;
  select.addEventListener("change", () => showTask(select.value));
}

/* Change maps over frames. */
const pictures = JSON.parse(document.getElementById("pictures")?.textContent ?? "null");
const loaded = new Map();
function load(address) {
  if (!loaded.has(address)) {
    const image = new Image();
    image.src = address;
    loaded.set(address, image.decode().then(() => image));
  }
  return loaded.get(address);
}
async function shares(map) {
  if (!map.values) {
    const image = await load(map.strip);
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const colours = context.getImageData(0, 0, image.width, image.height).data;
    map.values = Float32Array.from({ length: colours.length / 4 }, (_, i) => colours[4 * i] / 255);
  }
  return map.values;
}
const STOPS = [[140, 41, 129], [241, 96, 93], [252, 253, 191]];
function heat(value) {
  const at = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((start, i) => start + (at - low) * (STOPS[low + 1][i] - start));
}
function overlay(values, map, frame, largest) {
  const size = map.width * map.height;
  const canvas = new OffscreenCanvas(map.width, map.height);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(map.width, map.height);
  for (let i = 0; i < size; i++) {
    const share = values[frame * size + i];
    if (share === 0) continue;
    const relative = Math.min(share / largest, 1);
    picture.data.set([...heat(relative), 70 + 130 * relative], 4 * i);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}
const perCent = (value) => `${(100 * value).toFixed(1)}\u202f%`;

function viewer(block) {
  const entry = pictures.tasks.find((task) => task.task === block.dataset.task);
  const [layer, slider, place, play, most] =
    ["layer", "frame", "place", "play", "most"].map((name) => block.querySelector(`[data-role=${name}]`));
  const figures = all("figure", block);
  let latest = 0;
  async function draw() {
    const turn = ++latest;
    const frame = Number(slider.value);
    place.textContent = `frame ${frame + 1} of ${Number(slider.max) + 1}`;
    const maps = entry.panels.map((panel) => panel.maps[layer.value]);
    const values = await Promise.all(maps.map((map) => map && shares(map)));
    const strips = await Promise.all(entry.panels.map((panel) => load(pictures.strips[panel.frames])));
    if (turn !== latest) return;
    let largest = 0;
    maps.forEach((map, i) => {
      const start = map && values[i].length > map.width * map.height ? map.width * map.height : 0;
      if (map) for (const value of values[i].subarray(start)) largest = Math.max(largest, value);
    });
    largest = largest || 1;
    most.textContent = perCent(largest);
    figures.forEach((figure, i) => {
      const [panel, map, canvas] = [entry.panels[i], maps[i], figure.querySelector("canvas")];
      const shown = Math.min(frame, panel.count - 1);
      const [width, height] = [strips[i].width, strips[i].height / panel.count];
      const zoom = Math.max(1, Math.round(448 / width));
      canvas.width = width * zoom;
      canvas.height = height * zoom;
      const context = canvas.getContext("2d");
      context.filter = map ? "grayscale(1) brightness(0.8)" : "none";
      context.drawImage(strips[i], 0, shown * height, width, height, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
      context.imageSmoothingEnabled = false;
      if (map) context.drawImage(overlay(values[i], map, shown, largest), 0, 0, canvas.width, canvas.height);
      figure.querySelector("[data-role=says]").textContent = map
        ? `${perCent(map.mean[shown])} of channels change (${map.width} × ${map.height} positions)`
        : "this layer was not recorded";
      canvas.setAttribute("aria-label", `${panel.label}, ${layer.value}, frame ${shown + 1}`);
    });
    block.dataset.drawn = `${layer.value}/${frame}`;
  }
  let timer = null;
  play.addEventListener("click", () => {
    if (timer) { clearInterval(timer); timer = null; }
    else timer = setInterval(() => {
      slider.value = Number(slider.value) >= Number(slider.max) ? 0 : Number(slider.value) + 1;
      draw();
    }, 200);
    play.textContent = timer ? "pause" : "play";
  });
  layer.addEventListener("change", draw);
  slider.addEventListener("input", draw);
  draw();
}
if (pictures) for (const block of all(".maps")) viewer(block);
