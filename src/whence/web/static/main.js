// The page: what is asked, in one place; every change of it asks anew and shows the answer.

import { ask, base64, numbers } from "./api.js";
import { Drawing } from "./drawing.js";
import * as heat from "./heat.js";

const $ = id => document.getElementById(id);
const state = { target: null, picture: null, answer: null, layers: null };
const drawing = new Drawing($("drawing"), () => { state.target = null; explain(); });
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
    model: name, ...input, target: state.target, rather_than: $("rather").value || null, method: $("method").value, settings, ...more,
  };
}

const asksSomething = () => model().takes !== "picture" || state.picture !== null;

async function explain() {
  if (!asksSomething() || (model().takes === "text" && !$("text").value.trim())) return;
  await attempt(async () => {
    state.answer = await ask("explain", question());
    show(state.answer);
    remember();
  });
}

async function attempt(work) {
  try {
    $("error").hidden = true;
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

function show(answer) {
  const relevance = numbers(answer.relevance), text = model().takes === "text";
  $("heat").hidden = text;
  $("tokens").hidden = !text;
  if (text) showTokens(answer.tokens, relevance.values);
  else paintOver(relevance, answer);
  const digits = v => v.toPrecision(3);
  const parts = [`relevance ${digits(answer.relevance_sum)}`];
  if (Math.abs(answer.absorbed ?? 0) > 1e-5 * Math.abs(answer.output)) parts.push(`absorbed by biases and ε ${digits(answer.absorbed)}`);
  $("account").textContent = `${answer.target.name}: output ${digits(answer.output)} ${answer.adds_up ? "=" : "; by this method no sum:"} `
    + parts.join(" + ") + (answer.caution ? `. ${answer.caution}` : "") + (answer.note ? ` (${answer.note})` : "");
  $("classes").replaceChildren(...answer.classes.map(({ index, name, share }) => {
    const button = made("button", { type: "button" }, made("span", {}, name || "␣"), made("span", {}, `${(100 * share).toFixed(1)} %`));
    button.setAttribute("aria-pressed", index === answer.target.index);
    button.addEventListener("click", () => { state.target = index; explain(); });
    return made("li", {}, button);
  }));
}

async function paintOver(relevance, answer, canvas = $("heat"), limit = undefined) {
  if (answer?.picture && model().takes === "picture") $("picture").src = `data:image/png;base64,${answer.picture}`;
  if (model().takes === "picture") $("picture").hidden = false;
  let under = null;
  if ($("over").checked && answer?.picture) {
    under = new Image();
    under.src = `data:image/png;base64,${answer.picture}`;
    await under.decode();
  }
  heat.paint(canvas, relevance, limit, under);
}

function showTokens(tokens, values) {
  const limit = heat.largest(values);
  $("tokens").replaceChildren(...tokens.map((token, i) => {
    const [red, green, blue] = heat.colour(values[i] / limit), button = made("button", { type: "button" }, token || "␣");
    button.title = `relevance ${values[i].toPrecision(3)}; click to ask why this token`;
    button.style.background = `rgb(${red} ${green} ${blue})`;
    button.style.color = 0.3 * red + 0.6 * green + 0.1 * blue > 140 ? "black" : "white";
    button.addEventListener("click", () => attempt(async () => {
      if (!i) throw new Error("nothing comes before the first token; choose another");
      show(await ask("explain", question({ position: i - 1, target: null })));
    }));
    return button;
  }));
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
  $("channels").replaceChildren(made("p", {}, `The channels of ${layer.name} that carried most of ${state.layers.target.name}. `
    + "Choose one to see what flows through it."), ...layer.channels.map(({ channel, share }) => {
    const button = made("button", { type: "button" }, `channel ${channel}`, made("small", {}, `${(100 * share).toFixed(1)} % of the output`));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => press(button, () => attempt(async () => {
      const found = await ask("through", question({ target: state.layers.target.index, layer: layer.name, channel }));
      const canvas = button.querySelector("canvas") ?? button.insertBefore(made("canvas", {}), button.firstChild);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `what flows through channel ${channel}: ${found.amount.toPrecision(3)} of ${found.output.toPrecision(3)}`);
      await paintOver(numbers(found.relevance), null, canvas);
    })));
    return button;
  }));
}

function made(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

function options(select, values, chosen = values[0]) {
  select.replaceChildren(...values.map(value => made("option", { value, selected: value === chosen }, value.replaceAll("_", " "))));
}

function changeModel() {
  const { takes, classes, methods, presets, trained } = model();
  for (const kind of ["drawing", "picture", "text"]) $(`${kind}-input`).hidden = takes !== kind;
  $("flow").hidden = takes === "text";
  $("over").parentElement.hidden = takes === "text";
  options($("method"), [...methods, ...presets.filter(name => name !== "attn_lrp")]);
  $("rather").replaceChildren(made("option", { value: "" }, "(nothing)"), ...classes.map(name => made("option", { value: name }, name)));
  $("rather").parentElement.hidden = !classes.length;
  state.target = null;
  for (const id of ["layers", "channels", "classes"]) $(id).replaceChildren();
  $("account").textContent = trained ? "" : "This model has random weights: what it says means nothing.";
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
    if (file.size > 8 * 2 ** 20) throw new Error("the picture is larger than 8 MiB; choose a smaller one");
    state.picture = base64(new Uint8Array(await file.arrayBuffer()));
    state.target = null;
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

// the address holds what was asked, but for pictures

function remember() {
  const asked = question();
  delete asked.picture;
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(asked))}`);
}

function recall() {
  try {
    const asked = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    if (models.some(({ name }) => name === asked.model)) $("model").value = asked.model;
    return asked;
  } catch {
    return {};
  }
}

function restore(asked) {
  if (asked.drawing) drawing.bytes = Uint8Array.from(atob(asked.drawing), c => c.charCodeAt(0));
  if (asked.text) $("text").value = asked.text;
  if (asked.method) $("method").value = asked.method;
  for (const [id, value] of Object.entries(asked.settings ?? {})) $(id).value = id === "epsilon" ? Math.log10(value) : value;
  $("rather").value = asked.rather_than ?? "";
  state.target = asked.target ?? null;
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
  $("sample").addEventListener("change", () => { sample(); state.target = null; explain(); });
}

$("model").addEventListener("change", changeModel);
$("palette").addEventListener("change", () => { heat.choose($("palette").value); if (state.answer) show(state.answer); if (state.layers) showLayers(); });
$("clear").addEventListener("click", () => { drawing.clear(); state.target = null; explain(); });
$("file").addEventListener("change", () => readPicture($("file").files[0]));
for (const kind of ["dragover", "drop"]) $("drop").addEventListener(kind, event => { event.preventDefault(); if (kind === "drop") readPicture(event.dataTransfer.files[0]); });
$("text-input").addEventListener("submit", event => { event.preventDefault(); state.target = null; explain(); });
for (const id of ["method", "rule", "gamma", "alpha", "epsilon", "part", "rather"]) $(id).addEventListener("input", () => { changeRules(); explain(); });
$("over").addEventListener("change", () => state.answer && show(state.answer));
$("likeliest").addEventListener("click", () => { state.target = null; explain(); });
$("show-layers").addEventListener("click", showLayers);
$("link").addEventListener("click", () => navigator.clipboard.writeText(location.href));
for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => download(button.dataset.format));
attempt(begin);
