"use strict";

const at = (id) => document.getElementById(id);
const NARROW = "\u202f";
const perCent = (share) => `${(100 * share).toFixed(1)}${NARROW}%`;
const rate = (value) => value === null ? "–" : value.toFixed(value < 100 ? 1 : 0);
const TINT = "rgb(255 96 0 / 0.4)";

let socket = null, about = null, shown = null, rows = [];
let ended = false, delay = 500;

/* The socket: found again when it is lost, until the server says that it has ended. */
function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => typeof data === "string" ? introduce(JSON.parse(data)) : receive(data);
  socket.onclose = ({ code }) => {
    ended ||= code === 1001;
    heard(false);
    say(ended ? "The program has ended." : "The connection is lost; looking for it …");
    setTimeout(connect, delay);
    delay = Math.min(2 * delay, 8000);
  };
}
function send(what, layer = 0) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ do: what, layer }));
}
function say(text) {
  at("state").textContent = text;
  at("state").hidden = !text;
}

/* Buttons that nobody would hear cannot be pressed. */
function heard(yes) {
  for (const button of ["play", "step", "reset"]) at(button).disabled = !yes;
}

function introduce(message) {
  [delay, ended] = [500, false];
  say("");
  heard(true);
  about = message;
  document.title = `${about.network} · sparsetime watch`;
  at("network").textContent = about.network;
  at("video").textContent = `${about.video} at ${about.input_size.join(" × ")}, ${about.threads} thread${about.threads > 1 ? "s" : ""}, `
    + `${(about.dense_macs / 1e6).toFixed(0)} million operations a dense frame`;
  const option = (layer, index) => {
    const item = new Option(`${layer.name}  (${layer.shape.join(" × ")})`, index);
    item.disabled = !layer.placed;
    return item;
  };
  at("layer").replaceChildren(...about.layers.map(option));
  rows = about.layers.map(row);
  at("layers").replaceChildren(...rows.map(({ button }) => button));
}
function element(kind, name, parent) {
  const made = document.createElement(kind);
  made.className = name;
  parent?.append(made);
  return made;
}
function row(layer, index) {
  const button = element("button", "layer");
  button.type = "button";
  button.disabled = !layer.placed;
  button.title = `${layer.name}: ${layer.kind}, input ${layer.shape.join(" × ")}, ${perCent(layer.share)} of the dense operations`;
  element("bdi", "", element("span", "name", button)).textContent = layer.name;
  const track = element("span", "track", button);
  const [fill, mean] = [element("span", "fill", track), element("span", "mean", track)];
  const value = element("span", "value", button);
  button.addEventListener("click", () => send("layer", index));
  return { button, fill, mean, value };
}

/* One message: length of the header, header, map, JPEG. While a picture is being decoded only the newest waits. */
let decoding = false, next = null;
async function receive(data) {
  next = data;
  if (decoding) return;
  decoding = true;
  while (next) {
    const newest = next;
    next = null;
    const length = new DataView(newest).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(newest, 4, length)));
    const cells = header.map ? header.map[0] * header.map[1] : 0;
    const map = new Uint8Array(newest, 4 + length, cells);
    const picture = new Uint8Array(newest, 4 + length + cells);
    try {
      const image = picture.length ? await createImageBitmap(new Blob([picture], { type: "image/jpeg" })) : null;
      shown?.image?.close();
      shown = { header, map, image };
      figures(header);
      draw();
    } catch (error) {
      say(`A frame could not be shown: ${error.message}`);
    }
  }
  decoding = false;
}

function figures(header) {
  at("play").textContent = !header.paused ? "Pause" : header.ended ? "Again" : "Play";
  at("fps").textContent = rate(header.fps);
  at("fps-dense").textContent = rate(header.fps_dense);
  at("runtime").textContent = header.dense_runtime ?? (header.frames > 1 ? "looking for the fastest runtime …" : "");
  const ratio = header.fps && header.fps_dense ? header.fps / header.fps_dense : null;
  at("ratio").textContent = ratio === null ? "" : `${ratio.toFixed(ratio < 10 ? 2 : 1)} × dense`;
  at("density").textContent = header.density === null ? "–" : perCent(header.density);
  at("density-bar").style.width = `${100 * (header.density ?? 0)}%`;
  at("saved").textContent = header.saved === null ? "–" : perCent(header.saved);
  const dropped = header.dropped ? `, ${header.dropped} dropped` : "";
  at("frames").textContent = `of the operations, ${header.frames} frame${header.frames === 1 ? "" : "s"}${dropped}`;
  at("layer").value = header.layer;
  rows.forEach(({ button, fill, mean, value }, index) => {
    const density = header.layers[index] ?? 0;
    fill.style.width = `${100 * Math.min(density, 1)}%`;
    mean.style.left = `${100 * Math.min(header.means[index], 1)}%`;
    mean.hidden = header.frames === 0;
    value.textContent = header.layers.length ? perCent(density) : "";
    button.classList.toggle("whole", Boolean(header.whole[index]));
    button.setAttribute("aria-pressed", index === header.layer);
  });
  say([header.error, ...header.damage].filter(Boolean).join("; "));
}

/* Behind, the frame in grey; before it, in colour and tinted, the places that were recomputed. */
function draw() {
  const { header, map, image } = shown;
  const [frame, work] = [at("frame"), at("work")];
  if (!image) return;
  const [width, height] = [image.width, image.height];
  for (const canvas of [frame, work]) if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  at("stage").style.aspectRatio = `${width} / ${height}`;
  const overlay = at("overlay").checked;
  frame.classList.toggle("behind", overlay);
  work.hidden = !overlay;
  frame.getContext("2d").drawImage(image, 0, 0);
  const context = work.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, width, height);
  let changed = 0;
  if (header.map) {
    const [rowsOfMap, columns] = header.map;
    const small = document.createElement("canvas");
    Object.assign(small, { width: columns, height: rowsOfMap });
    const cells = new ImageData(columns, rowsOfMap);
    map.forEach((share, place) => {
      changed += share > 0;
      cells.data[4 * place + 3] = share && 64 + 191 * Math.min(1, share / 127);
    });
    small.getContext("2d").putImageData(cells, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height);
    context.globalCompositeOperation = "source-in";
    context.drawImage(image, 0, 0);
    context.globalCompositeOperation = "source-atop";
    context.fillStyle = TINT;
    context.fillRect(0, 0, width, height);
  }
  at("note").textContent = !overlay ? "" : header.map
    ? `${about.layers[header.layer].name}: ${perCent(changed / map.length)} of ${header.map.join(" × ")} places changed`
    : "play or step to see what this layer recomputes";
  at("stage").dataset.drawn = `${header.frames}/${header.layer}`;
}

for (const what of ["step", "reset"]) at(what).addEventListener("click", () => send(what));
at("play").addEventListener("click", () => send(shown?.header.paused === false ? "pause" : "play"));
at("layer").addEventListener("change", () => send("layer", Number(at("layer").value)));
at("overlay").addEventListener("change", () => shown && draw());
document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = { " ": "play", ArrowRight: "step", r: "reset" }[event.key];
  if (!key || (key === "play" && event.target.closest?.("button"))) return;
  event.preventDefault();
  at(key).click();
});
connect();
