// The main page: every change of the settings sends a new request and shows its result.

import { ask, base64, drop, numbers } from "./api.js";
import { $, attempt, digits, made, options, picture, says, tile } from "./dom.js";
import { Drawing } from "./drawing.js";
import * as heat from "./heat.js";

const state = { target: null, point: null, position: -1, picture: null, answer: null, layers: null };
let runs = 0; // counts the comparisons of methods
const drawing = new Drawing($("drawing"), () => { anew(); explain(); });
let models = [];

const model = () => models.find(({ name }) => name === $("model").value);

function question(more = {}) {
  const { takes, name } = model();
  const input = takes === "drawing" ? { drawing: drawing.encoded }
    : takes === "picture" ? { picture: state.picture } : { text: $("text").value };
  const settings = {
    rule: $("rule").value, gamma: +$("gamma").value, alpha: +$("alpha").value, epsilon: 10 ** +$("epsilon").value,
    part: $("part").value,
  };
  return {
    model: name, ...input, target: state.target, point: state.point, position: state.position, rather_than: $("rather").value || null,
    method: $("method").value, settings, ...more,
  };
}

const asksSomething = () => ({ drawing: true, picture: state.picture, text: $("text").value.trim() })[model().takes];

// explain the current input, and clear the results of the previous request
async function explain() {
  runs += 1;
  state.layers = null;
  for (const id of ["layers", "channels", "methods"]) $(id).replaceChildren();
  await refresh();
}

async function refresh() {
  if (!asksSomething()) return;
  await attempt(async () => {
    state.answer = await ask("explain", question());
    await show(state.answer);
    remember();
    await showTwin();
  });
}

const anew = () => Object.assign(state, { target: null, point: null, position: -1 }); // the top class, at the last position

async function show(answer) {
  const relevance = numbers(answer.relevance), text = model().takes === "text";
  $("heat").hidden = text;
  $("tokens").hidden = !text;
  if (text) showTokens(answer.tokens, relevance.values);
  else {
    await paintOver(relevance, answer);
    outline($("heat"), answer);
  }
  $("heat").classList.toggle("choosable", answer.kind !== "classes");
  $("choose").textContent = { boxes: "Choose a box, here or in the picture, to explain it.", map: "Choose a class, or click a place in the picture, to explain it." }[answer.kind] ?? "Choose a class to explain it.";
  const parts = [`relevance ${digits(answer.relevance_sum)}`];
  if (Math.abs(answer.absorbed ?? 0) > 1e-5 * Math.abs(answer.output)) parts.push(`absorbed (by biases and ε) ${digits(answer.absorbed)}`);
  $("account").textContent = `${answer.target.name}: output ${digits(answer.output)} ${answer.adds_up ? "=" : "; not conserved by this method:"} `
    + parts.join(" + ") + (answer.caution ? `. ${answer.caution}` : "") + (answer.note ? ` (${answer.note})` : "");
  $("classes").replaceChildren(...answer.classes.map(({ index, name, share }) => {
    const button = made("button", { type: "button" }, made("span", {}, name || "␣"), made("span", {}, `${(100 * share).toFixed(1)} %`));
    button.setAttribute("aria-pressed", index === answer.target.index);
    button.addEventListener("click", () => { Object.assign(state, { target: index, point: null }); explain(); });
    return made("li", {}, button);
  }));
}

// draw the boxes of a detector, the explained one thick, or the point of a segmentation

function outline(canvas, answer) {
  const [height, width] = numbers(answer.relevance).shape.slice(-2), pen = canvas.getContext("2d");
  const scale = canvas.width / width, vertical = canvas.height / height;
  const strokes = path => [["white", 3], ["black", 1.5]].forEach(([style, line]) => {
    Object.assign(pen, { strokeStyle: style, lineWidth: line });
    path();
  });
  for (const { box, index, name } of answer.classes.filter(({ box }) => box)) {
    const [left, top, right, bottom] = box, chosen = index === answer.target.index;
    pen.globalAlpha = chosen ? 1 : 0.5;
    strokes(() => pen.strokeRect(left * scale, top * vertical, (right - left) * scale, (bottom - top) * vertical));
    if (chosen) {
      pen.font = "14px sans-serif";
      const y = Math.max(16, top * vertical), x = Math.max(0, left * scale);
      pen.fillStyle = "black";
      pen.fillRect(x, y - 16, pen.measureText(name).width + 6, 16);
      pen.fillStyle = "white";
      pen.fillText(name, x + 3, y - 4);
    }
  }
  pen.globalAlpha = 1;
  if (answer.point) {
    const [x, y] = answer.point;
    strokes(() => { pen.beginPath(); pen.arc((x + 0.5) * scale, (y + 0.5) * vertical, 6, 0, 7); pen.stroke(); });
  }
}

// explain the smallest box at the place that was clicked, or the class that is predicted there

function choosePlace(event) {
  const answer = state.answer, canvas = $("heat");
  if (!answer || answer.kind === "classes") return;
  const [height, width] = numbers(answer.relevance).shape.slice(-2), edges = canvas.getBoundingClientRect();
  const x = (event.clientX - edges.left) / edges.width * width, y = (event.clientY - edges.top) / edges.height * height;
  if (answer.kind === "map") Object.assign(state, { target: null, point: [Math.min(Math.floor(x), width - 1), Math.min(Math.floor(y), height - 1)] });
  else {
    const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
    const here = answer.classes.filter(({ box: [left, top, right, bottom] }) => left <= x && x <= right && top <= y && y <= bottom);
    if (!here.length) return;
    state.target = here.reduce((a, b) => area(a.box) <= area(b.box) ? a : b).index;
  }
  explain();
}

async function paintOver(relevance, answer, canvas = $("heat")) {
  if (answer?.picture && model().takes === "picture") $("picture").src = `data:image/png;base64,${answer.picture}`;
  if (model().takes === "picture") $("picture").hidden = false;
  let under = null;
  if ($("over").checked && answer?.picture) {
    under = new Image();
    under.src = `data:image/png;base64,${answer.picture}`;
    await under.decode();
    if (canvas === $("heat") && answer !== state.answer) return; // a newer result has arrived
    if (!$("over").checked) under = null;
  }
  heat.paint(canvas, relevance, heat.largest(relevance.values), under);
}

const coloured = (tokens, values, tag) => tokens.map((token, i) => {
  const colour = heat.colour(values[i] / heat.largest(values)), element = made(tag, {}, token || "␣");
  Object.assign(element.style, { background: heat.css(colour), color: heat.ink(colour) });
  return element;
});

function showTokens(tokens, values) {
  const buttons = coloured(tokens, values, "button");
  buttons.forEach((button, i) => {
    Object.assign(button, { type: "button", title: `relevance ${digits(values[i])}; click to explain this token` });
    button.addEventListener("click", () => attempt(async () => {
      if (!i) throw new Error("the first token has no preceding context; choose another");
      Object.assign(state, { target: null, position: i - 1 });
      await explain();
    }));
  });
  $("tokens").replaceChildren(...buttons);
}

// the same explanation by other methods, shown as they finish

const BESIDE = ["lrp", "gradient_times_input", "integrated_gradients", "smooth_grad", "sensitivity", "guided_backprop", "grad_cam", "occlusion"];

async function showBeside() {
  const run = runs += 1, names = BESIDE.filter(name => model().methods.includes(name)), text = model().takes === "text";
  $("methods").replaceChildren();
  await refresh(); // use the target of the current input
  if (!state.answer || run !== runs) return;
  const asked = question({ target: state.answer.target.index });
  for (const method of names) {
    const figure = tile(made(text ? "p" : "canvas", { className: text ? "tokens" : "" }), method.replaceAll("_", " "), "…");
    $("methods").append(figure);
    const [name, account] = figure.querySelectorAll("span");
    try {
      const answer = await ask("explain", { ...asked, method }, "beside");
      if (run !== runs) return;
      const relevance = numbers(answer.relevance);
      if (text) figure.firstChild.replaceChildren(...coloured(answer.tokens, relevance.values, "span"));
      else await paintOver(relevance, answer, figure.firstChild);
      if (!text) says(figure.firstChild, `heatmap by ${name.textContent}`);
      account.textContent = answer.adds_up ? `ΣR ${digits(answer.relevance_sum)} of ${digits(answer.output)}` : "does not add up to the output";
    } catch (error) {
      if (run !== runs) return;
      account.textContent = error.message;
    }
  }
}

// an adversarial example within ε

async function showTwin() {
  const epsilon = +$("distance").value;
  $("distance-value").textContent = digits(epsilon);
  drop("attack");
  $("twin").replaceChildren();
  if (!epsilon || model().takes === "text" || !asksSomething()) return;
  await attempt(async () => {
    const answer = await ask("attack", question({ epsilon, attack: $("by").value }));
    const canvas = says(made("canvas", {}), `heatmap of the adversarial example for ${answer.target.name}`);
    heat.paint(canvas, numbers(answer.relevance));
    const likeliest = answer.classes.slice(0, 3).map(({ name, share }) => `${name} ${(100 * share).toFixed(1)} %`).join(", ");
    $("twin").replaceChildren(
      tile(picture(answer.picture, "the adversarial example"), answer.success ? `predicted ${answer.target.name}, was ${answer.before}` : `still ${answer.before}`, likeliest),
      tile(canvas, `relevance for ${answer.target.name}`, `output ${digits(answer.output)}`),
    );
  });
}

async function showLayers() {
  await attempt(async () => {
    const answer = state.layers = await ask("layers", question());
    const items = answer.layers.map((layer, i) => {
      const canvas = made("canvas", {});
      canvas.setAttribute("aria-hidden", "true");
      heat.paint(canvas, numbers(layer.map));
      const sum = numbers(layer.map).values.reduce((a, b) => a + b, 0);
      const button = made("button", { type: "button" }, canvas, made("span", {}, `${layer.name} ${layer.kind}`),
        made("small", {}, `${layer.shape.join(" × ")}, ΣR ${sum.toPrecision(3)}`));
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => press(button, () => showChannels(i)));
      return made("li", {}, button);
    });
    $("layers").replaceChildren(...items);
    $("channels").replaceChildren();
  });
}

function press(button, work) {
  for (const other of button.closest("ol, div").querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", other === button);
  work();
}

function showChannels(i) {
  const layer = state.layers.layers[i];
  $("channels").replaceChildren(made("p", {}, `The most relevant channels of ${layer.name} for ${state.layers.target.name}. `
    + "Choose one to see the relevance that flows through it."), ...layer.channels.map(({ channel, share }) => {
    const button = made("button", { type: "button" }, `channel ${channel}`, made("small", {}, `${(100 * share).toFixed(1)} % of the output`));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => press(button, () => attempt(async () => {
      const found = await ask("through", question({ target: state.layers.target.index, layer: layer.name, channel }));
      const canvas = button.querySelector("canvas") ?? button.insertBefore(made("canvas", {}), button.firstChild);
      says(canvas, `relevance through channel ${channel}: ${found.amount.toPrecision(3)} of ${found.output.toPrecision(3)}`);
      await paintOver(numbers(found.relevance), null, canvas);
      showConcept(layer.name, channel);
    })));
    return button;
  }));
}

// the prototype of a channel, and the parts of the data where it is most relevant

function showConcept(layer, channel) {
  $("concept")?.remove();
  const search = made("button", { type: "button" }, `Show what channel ${channel} responds to`), found = made("div", { className: "tiles" });
  $("channels").append(made("div", { id: "concept" }, search, found));
  search.addEventListener("click", () => attempt(async () => {
    search.disabled = true;
    search.textContent = "searching…";
    try {
      const answer = await ask("channel", question({ target: state.layers.target.index, layer, channel }));
      found.replaceChildren(
        tile(picture(answer.prototype, `prototype of channel ${channel}`), "prototype"),
        ...answer.references.map(({ index, picture: png }) => tile(picture(png, `a part of sample ${index}`), `sample ${index}`)),
      );
      search.remove();
      if (!answer.references.length) found.append("Start the server with --data FOLDER to see samples where it is relevant.");
    } finally {
      search.disabled = false;
      search.textContent = `Show what channel ${channel} responds to`;
    }
  }));
}

function changeModel() {
  drop();
  anew();
  state.answer = null;
  const { takes, classes, methods, presets, trained } = model();
  for (const kind of ["drawing", "picture", "text"]) $(`${kind}-input`).hidden = takes !== kind;
  $("flow").hidden = $("attack").hidden = takes === "text";
  $("over").parentElement.hidden = takes === "text";
  options($("method"), [...methods, ...presets.filter(name => name !== "attn_lrp")]);
  $("rather").replaceChildren(made("option", { value: "" }, "(nothing)"), ...classes.map(name => made("option", { value: name }, name)));
  $("rather").parentElement.hidden = !classes.length;
  for (const id of ["classes", "twin", "tokens"]) $(id).replaceChildren();
  $("heat").hidden = true;
  $("distance").value = 0;
  $("distance-value").textContent = "0";
  $("account").textContent = trained ? "" : "This model has random weights; its predictions are meaningless.";
  changeRules();
  explain();
}

function changeRules() {
  $("rules").hidden = $("method").value !== "lrp";
  for (const label of document.querySelectorAll("[data-rule]")) label.hidden = !label.dataset.rule.split(" ").includes($("rule").value);
  $("gamma-value").textContent = $("gamma").value;
  $("alpha-value").textContent = $("alpha").value;
  $("epsilon-value").textContent = Number((10 ** +$("epsilon").value).toPrecision(2));
}

async function readPicture(file) {
  if (!file) return;
  await attempt(async () => {
    if (file.size > 8 * 2 ** 20) throw new Error("the image is larger than 8 MiB; choose a smaller one");
    state.picture = base64(new Uint8Array(await file.arrayBuffer()));
    anew();
    await explain();
  });
}

async function download(format) {
  await attempt(async () => {
    const blob = await ask("download", question({ format }));
    const link = made("a", { href: URL.createObjectURL(blob), download: `explanation.${format}` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// the URL stores the settings, but no images

function remember() {
  const asked = question();
  delete asked.picture;
  if (state.answer?.kind !== "classes") delete asked.target;
  try {
    history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(asked))}`);
  } catch { /* browsers limit the rate; a later call succeeds */ }
}

function recall() {
  try {
    const asked = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    if (!models.some(({ name }) => name === asked.model)) return {}; // a link from another server
    $("model").value = asked.model;
    return asked;
  } catch {
    return {};
  }
}

function restore(asked) {
  if (asked.drawing) drawing.bytes = Uint8Array.from(atob(asked.drawing), c => c.charCodeAt(0));
  if (asked.text) $("text").value = asked.text;
  if (asked.method) $("method").value = asked.method;
  for (const id of ["rule", "gamma", "alpha", "epsilon", "part"]) {
    const value = asked.settings?.[id];
    if (value !== undefined) $(id).value = id === "epsilon" ? Math.log10(value) : value;
  }
  $("rather").value = asked.rather_than ?? "";
  Object.assign(state, { target: asked.target ?? null, position: asked.position ?? -1 });
  changeRules();
}

async function begin() {
  models = await ask("models");
  $("model").replaceChildren(...models.map(({ name }) => made("option", { value: name }, name)));
  const asked = recall(), digits = await ask("digits");
  digits.forEach(({ label }, i) => $("sample").append(made("option", { value: i }, `${i}: a ${label}`)));
  const sample = () => { drawing.bytes = Uint8Array.from(atob(digits[$("sample").value].pixels), c => c.charCodeAt(0)); };
  sample();
  changeModel();
  restore(asked);
  explain();
  $("sample").addEventListener("change", () => { sample(); anew(); explain(); });
}

$("model").addEventListener("change", changeModel);
heat.chooser($("palette"), () => { if (state.answer) show(state.answer); if (state.layers) showLayers(); showTwin(); });
$("show-beside").addEventListener("click", showBeside);
$("distance").addEventListener("input", () => { $("distance-value").textContent = $("distance").value; });
for (const id of ["distance", "by"]) $(id).addEventListener("change", showTwin); // an attack is slow, so not at every step of the slider
$("clear").addEventListener("click", () => { drawing.clear(); anew(); explain(); });
$("file").addEventListener("change", () => readPicture($("file").files[0]));
for (const kind of ["dragover", "drop"]) $("drop").addEventListener(kind, event => { event.preventDefault(); if (kind === "drop") readPicture(event.dataTransfer.files[0]); });
$("text-input").addEventListener("submit", event => { event.preventDefault(); anew(); explain(); });
for (const id of ["method", "rule", "gamma", "alpha", "epsilon", "part", "rather"]) $(id).addEventListener("input", () => { changeRules(); explain(); });
$("over").addEventListener("change", () => state.answer && show(state.answer));
$("heat").addEventListener("click", choosePlace);
$("likeliest").addEventListener("click", () => { anew(); explain(); });
$("show-layers").addEventListener("click", showLayers);
$("link").addEventListener("click", () => attempt(async () => {
  if (!navigator.clipboard) throw new Error("the browser allows copying only on https or localhost; copy the URL from the address bar");
  await navigator.clipboard.writeText(location.href);
}));
for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => download(button.dataset.format));
attempt(begin);
