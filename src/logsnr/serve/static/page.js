"use strict";
// One page: asks the API, shows what comes, keeps nothing. The token lives in its field alone.
const $ = (id) => document.getElementById(id);
const sliders = ["steps", "rho", "guidance"];

function told(id) { $(`${id}-told`).textContent = $(id).value; }

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function headers() {
  const found = { "content-type": "application/json" };
  const token = $("token").value.trim();
  if (token) found.authorization = `Bearer ${token}`;
  return found;
}

const KIND = {
  bad_token: "This token is not valid, or not any more. Ask whoever gave it to you for a new one.",
  not_granted: "This token does not unlock that.",
  full: "The server is busy. Try again in a moment.",
};

async function complaint(response) {
  let body;
  try { body = await response.json(); } catch { return `The server answered ${response.status}.`; }
  const { code, message } = body.error ?? {};
  const wait = response.headers.get("retry-after");
  if (response.status === 429) return `That was a lot at once. Try again in ${wait ?? "some"} seconds.`;
  return KIND[code] ?? `${(message ?? "Something went wrong").replace(/^./, (c) => c.toUpperCase())}.`;
}

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(await complaint(response));
  return response.json();
}

async function describe() {
  const [model] = (await get("/v1/models")).data;
  $("model").textContent = `${model.id}, ${model.size}`;
  $("steps").max = Math.min(50, model.max_steps);
  $("steps").value = model.steps;
  $("guidance").value = model.guidance_scale;
  for (const name of model.deltas) $("delta").add(new Option(name, name));
  $("delta-row").hidden = !model.deltas.length;
  sliders.forEach(told);
}

async function plot() {
  const query = new URLSearchParams({ steps: $("steps").value, grid: $("grid").value });
  let levels;
  try { levels = (await get(`/v1/schedule?${query}`)).levels; } catch { return; }
  const known = levels.map((l) => l.log_snr).filter((v) => v !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (i) => 30 + (280 * i) / Math.max(1, levels.length - 1);
  const y = (v) => 108 - (96 * ((v ?? high + 1) - low)) / Math.max(1e-9, high + 1 - low);
  const points = levels.map((l, i) => [x(i).toFixed(1), y(l.log_snr).toFixed(1)]);
  const dots = points.map(([a, b]) => `<circle cx="${a}" cy="${b}" r="2.5"/>`).join("");
  const marks = [low, high].map((v) => `<text x="2" y="${y(v) + 3}">${v.toFixed(1)}</text>`).join("");
  const zero = low < 0 && high > 0 ? `<line x1="30" x2="310" y1="${y(0)}" y2="${y(0)}"/>` : "";
  $("plot").innerHTML = `${zero}<polyline points="${points.join(" ")}"/>${dots}${marks}`;
}

async function reveal() {
  $("concepts").textContent = "";
  if (!$("token").value.trim()) { fail(""); return; }
  try {
    const names = (await get("/v1/concepts")).data;
    for (const name of names) {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", value: name, checked: true });
      label.append(box, name);
      $("concepts").append(label);
    }
    if (!names.length) $("concepts").textContent = "This token unlocks nothing yet.";
    fail("");
  } catch (error) { fail(error.message); }
}

function wish(delta) {
  const seed = $("seed").value === "" ? undefined : Number($("seed").value);
  const unlock = [...$("concepts").querySelectorAll("input:checked")].map((box) => box.value);
  const found = {
    prompt: $("prompt").value, seed, num_inference_steps: Number($("steps").value), rho: Number($("rho").value),
    guidance_scale: Number($("guidance").value), grid: $("grid").value, stream: true, partial_images: 8,
  };
  if (delta) found.delta = delta; else if (unlock.length) found.unlock = unlock;
  return found;
}

// Server-sent events of one request: {type, ...} each.
async function* events(body) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body) };
  const response = await fetch("/v1/images/generations", options);
  if (!response.ok) throw new Error(await complaint(response));
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let kept = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (kept + decoder.decode(value, { stream: true })).split("\n\n");
    kept = parts.pop();
    for (const part of parts) yield JSON.parse(part.split("\n").find((l) => l.startsWith("data: ")).slice(6));
  }
}

const source = (base64) => `data:image/png;base64,${base64}`;

async function draw(image, delta) {
  const asked = wish(delta);
  let made;
  for await (const event of events(asked)) {
    if (event.type === "error") throw new Error(event.error.message);
    image.src = source(event.b64_json);
    if (event.type === "image_generation.completed") made = { seed: event.seed, nfe: event.nfe, src: image.src, asked };
  }
  if (!made) throw new Error("The server stopped before the image was finished.");
  return made;
}

function keep(made, words) {
  const figure = document.createElement("figure");
  const image = Object.assign(new Image(), { src: made.src, alt: words });
  const caption = document.createElement("figcaption");
  const link = Object.assign(document.createElement("a"), { href: made.src, download: `seed-${made.seed}.png` });
  link.textContent = "save";
  caption.append(`${words} `, link);
  figure.append(image, caption);
  $("gallery").prepend(figure);
  while ($("gallery").children.length > 60) $("gallery").lastChild.remove();
}

async function generate(event) {
  event.preventDefault();
  fail("");
  $("go").disabled = true;
  const delta = $("delta").value;
  $("before").hidden = $("slide").hidden = !delta;
  $("told").textContent = "Working…";
  try {
    if (delta) keepBoth(await draw($("before"), ""), await draw($("after"), delta), delta);
    else keepOne(await draw($("after"), ""));
  } catch (error) {
    $("told").textContent = "No image was made.";
    fail(error.message || "The server cannot be reached.");
  } finally { $("go").disabled = false; }
}

function settings({ asked, seed, nfe }) {
  const more = [asked.unlock && `revealed: ${asked.unlock.join(" and ")}`, asked.delta].filter(Boolean);
  const plain = [asked.prompt, `seed ${seed}`, `${nfe} steps`, `rho ${asked.rho}`, `guidance ${asked.guidance_scale}`];
  return [...plain, ...more].join(", ");
}

function keepOne(made) {
  $("after").alt = $("told").textContent = settings(made);
  keep(made, settings(made));
}

function keepBoth(before, after, delta) {
  $("before").alt = settings(before);
  $("after").alt = settings(after);
  $("told").textContent = `${settings(before)}. Left of the slider: as it was; right: with ${delta}.`;
  keep(before, settings(before));
  keep(after, settings(after));
  slide();
}

function slide() { $("before").style.clipPath = `inset(0 ${100 - $("slide").value}% 0 0)`; }

for (const id of sliders) $(id).addEventListener("input", () => told(id));
for (const id of ["steps", "grid"]) $(id).addEventListener("change", plot);
$("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 2 ** 32); });
$("token").addEventListener("change", reveal);
$("slide").addEventListener("input", slide);
$("form").addEventListener("submit", generate);
describe().then(plot).catch((error) => fail(error.message));
