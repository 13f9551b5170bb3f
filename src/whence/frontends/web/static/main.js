// The main page: every change of the settings sends a new request and shows its result.

import { ask, drop, numbers } from "./api.js";
import * as answers from "./answers.js";
import { $, attempt, digits, groupedOptions, made, working } from "./dom.js";
import * as heat from "./heat.js";
import { Inputs } from "./inputs.js";
import * as language from "./language.js";
import * as next from "./next.js";

const SLOW = 250; // milliseconds, after which an explanation shows its progress
const NO_TARGET = { target: null, point: null, box: null, position: -1 }; // the top class, at the last position
let models = [], examples = [];

// what the other modules need to know: the model, its input, the current question and answer
const page = {
  ...NO_TARGET,
  answer: null,
  get model() { return models.find(({ name }) => name === $("model").value); },
  get over() { return $("over").checked; },
  question(more = {}) {
    const { name, writes } = page.model, { target, point, box, position } = page;
    const settings = {
      rule: $("rule").value, gamma: +$("gamma").value, alpha: +$("alpha").value, epsilon: 10 ** +$("epsilon").value, part: $("part").value,
    };
    const other = writes ? $("rather-token").value || null : $("rather").value === "" ? null : +$("rather").value;
    return { model: name, ...page.inputs.question, target, point, box, position, rather_than: other, method: $("method").value, settings, ...more };
  },
};
// the question of the answer on the page, with other parts
page.again = (more = {}) => ({ ...page.asked, ...more });
page.inputs = new Inputs(() => { Object.assign(page, NO_TARGET); markExample(); return explain(); }, attempt);

// explain the current input, and clear the results of the previous request
async function explain() {
  next.clear();
  $("next-section").hidden = page.inputs.empty && !page.model.writes;
  if (page.inputs.empty) {
    forget(EMPTY[page.model.takes]);
    return;
  }
  const dimmed = setTimeout(() => $("answer").setAttribute("aria-busy", true), SLOW);
  const asked = page.question(), source = page.inputs.source;
  const end = await working($("busy"), "explain", "explaining", async progress => {
    const answer = await ask("explain", asked, page.model.takes === "drawing" ? {} : { progress });
    Object.assign(page, { answer, asked, source });
    await show();
    remember();
    again();
  }, { delay: SLOW, errors: $("error") });
  clearTimeout(dimmed);
  if (end === "aborted") return; // a newer request shows its own state
  $("answer").removeAttribute("aria-busy");
  if (end === "failed") forget("There is no answer: see the message above.");
  if (end === "cancelled" && page.asked?.method) {
    $("method").value = page.asked.method;
    changeRules();
    $("readout").textContent = "Cancelled. What is shown is the answer before.";
  }
}

const EMPTY = {
  drawing: "Draw a digit on the left, or choose a sample.",
  picture: "Drop a photo on the left.",
  text: "Type a text on the left.",
  table: "Type the values of a row on the left, or open a CSV.",
  series: "Drop a CSV on the left.",
};

// show no answer, but what to do
function forget(words) {
  drop("explain");
  Object.assign(page, { answer: null, asked: null });
  next.clear();
  answers.clear(words);
  $("answer").removeAttribute("aria-busy");
  $("classes").replaceChildren();
}

async function show() {
  const { answer, model } = page, reads = model.takes === "text";
  const under = page.over && ["picture", "drawing"].includes(model.takes);
  await answers.show(answer, model.takes, { under, press: model.writes ? pressToken : null });
  if (model.takes === "picture") {
    $("picture").src = `data:image/png;base64,${answer.picture}`;
    $("picture").hidden = false;
  }
  const what = { boxes: "Choose a box, here or in the heatmap, to explain it.", map: "Choose a class, click a place in the heatmap or drag a box.", number: "The number that the model gives." };
  $("choose").textContent = what[answer.kind] ?? (model.writes ? "The likeliest next tokens. Choose one to explain it." : "Choose a class to explain it.");
  $("rather-label").hidden = answer.kind !== "classes" || model.writes || !model.classes.length;
  $("rather-form").hidden = !(reads && model.writes);
  $("likeliest").hidden = answer.kind === "number";
  while ($("classes").children.length > answer.classes.length) $("classes").lastChild.remove();
  answer.classes.forEach(showClass);
}

// buttons are kept from answer to answer, so that they keep the focus
function showClass({ index, name, share, value }, i) {
  const list = $("classes"), words = [name.trim() || "␣", value === undefined ? `${(100 * share).toFixed(1)} %` : digits(value)];
  if (!list.children[i]) list.append(made("li", {}, made("button", { type: "button" }, made("span", {}), made("span", {}))));
  const button = list.children[i].firstChild;
  words.forEach((word, k) => { if (button.children[k].textContent !== word) button.children[k].textContent = word; });
  button.setAttribute("aria-pressed", index === page.answer.target.index);
  button.style.setProperty("--share", value === undefined ? `${100 * share}%` : "0%");
  button.onclick = () => { Object.assign(page, { target: index, point: null }); explain(); }; // in the same box
}

// repeat what is open under "What next?"
function again() {
  if ($("reuse").open) next.copyCode(page);
  if ($("attack").open) next.attack(page);
}

function pressToken(i) {
  attempt(async () => {
    if (!i) throw new Error("the first token has no preceding context; choose another");
    Object.assign(page, { target: null, position: i - 1 });
    await explain();
  });
}

// a click explains the smallest box there, or the class that is predicted there; a drag, the class of a box
let pressed = null;

function choosePlace(event) {
  const { answer } = page;
  if (!pressed || !answer || !["boxes", "map"].includes(answer.kind)) return;
  const [x, y] = answers.place(event, $("heat"), numbers(answer.relevance)), [left, top] = pressed;
  pressed = null;
  if (answer.kind === "map") {
    const dragged = Math.abs(x - left) > 2 && Math.abs(y - top) > 2;
    Object.assign(page, { target: null, point: dragged ? null : [x, y], box: dragged ? [Math.min(x, left), Math.min(y, top), Math.max(x, left) + 1, Math.max(y, top) + 1] : null });
  } else {
    const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
    const here = answer.classes.filter(({ box: [x0, y0, x1, y1] }) => x0 <= x && x <= x1 && y0 <= y && y <= y1);
    if (!here.length) return;
    page.target = here.reduce((a, b) => area(a.box) <= area(b.box) ? a : b).index;
  }
  explain();
}

// read the value at the pointer, or at the pixel that the arrow keys move
let cursor = null;

function readHeat(event) {
  if (!page.answer?.relevance) return;
  cursor = answers.place(event, $("heat"), numbers(page.answer.relevance));
  answers.readPixel(page.answer, cursor);
}

function moveCursor(event) {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move || !page.answer?.relevance) return;
  event.preventDefault();
  const [height, width] = numbers(page.answer.relevance).shape.slice(-2);
  cursor = (cursor ?? answers.strongest(page.answer)).map((at, k) => Math.max(0, Math.min(at + move[k], (k ? height : width) - 1)));
  answers.readPixel(page.answer, cursor, true);
}

function changeModel() {
  drop();
  Object.assign(page, NO_TARGET, { answer: null });
  const { takes, classes, methods, method, presets, trained } = page.model, sees = ["drawing", "picture"].includes(takes);
  page.inputs.show(page.model);
  language.show(page.model);
  next.clear();
  answers.clear(EMPTY[takes]);
  cursor = null;
  $("flow").hidden = $("attack").hidden = !sees;
  $("over-label").hidden = !sees;
  $("untrained").hidden = trained;
  const maps = methods.filter(name => name.endsWith("cam") || name.startsWith("grad_cam"));
  groupedOptions($("method"), {
    Methods: methods.filter(name => !maps.includes(name)),
    "Class activation maps": sees ? maps : [],
    "Presets of LRP rules": presets.filter(name => name !== "attn_lrp"),
  }, method);
  $("rather").replaceChildren(made("option", { value: "" }, "no other class"), ...classes.map((name, value) => made("option", { value }, name)));
  $("rather-token").value = "";
  $("rather-label").hidden = !classes.length;
  $("rather-form").hidden = true;
  $("classes").replaceChildren();
  $("error").hidden = true;
  changeRules();
}

function changeRules() {
  $("rules").hidden = $("method").value !== "lrp";
  for (const label of document.querySelectorAll("[data-rule]")) label.hidden = !label.dataset.rule.split(" ").includes($("rule").value);
  $("gamma-value").textContent = $("gamma").value;
  $("alpha-value").textContent = $("alpha").value;
  $("epsilon-value").textContent = Number((10 ** +$("epsilon").value).toPrecision(2));
}

async function download(format) {
  await attempt(async () => {
    const blob = await ask("download", page.again({ format }));
    const link = made("a", { href: URL.createObjectURL(blob), download: `explanation.${format}` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// the URL stores the question, but no images and no long tables
function remember() {
  const asked = page.again();
  delete asked.picture;
  if (["boxes", "map"].includes(page.answer?.kind)) delete asked.target;
  for (const name of ["table", "series"]) if ((asked[name]?.length ?? 0) > 4000) delete asked[name];
  try {
    history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(asked))}`);
  } catch { /* browsers limit the rate; a later call succeeds */ }
}

function recall() {
  try {
    const asked = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return models.some(({ name }) => name === asked.model) ? asked : null; // else a link from another server
  } catch {
    return null;
  }
}

function restore(asked) {
  $("model").value = asked.model;
  changeModel();
  page.inputs.set(asked);
  if (asked.method) $("method").value = asked.method;
  for (const id of ["rule", "gamma", "alpha", "epsilon", "part"]) {
    const value = asked.settings?.[id];
    if (value !== undefined) $(id).value = id === "epsilon" ? Math.log10(value) : value;
  }
  $(page.model.writes ? "rather-token" : "rather").value = asked.rather_than ?? "";
  Object.assign(page, { target: asked.target ?? null, point: asked.point ?? null, box: asked.box ?? null, position: asked.position ?? -1 });
  changeRules();
}

async function openExample(example) {
  $("model").value = example.model;
  changeModel();
  page.inputs.set(example.input, example.sample);
  if (page.model.takes === "drawing") $("sample").value = example.sample;
  markExample(example);
  await explain();
}

function markExample(chosen = null) {
  for (const [i, card] of [...$("examples").children].entries()) card.setAttribute("aria-pressed", examples[i] === chosen);
}

const ICONS = { drawing: "digit", picture: "photo", text: "text", table: "table", series: "series" };

function showExamples() {
  const icons = $("icons").content;
  $("examples").replaceChildren(...examples.map(example => {
    const { takes } = models.find(({ name }) => name === example.model), icon = icons.querySelector(`[data-icon=${ICONS[takes]}] svg`).cloneNode(true);
    const card = made("button", { type: "button" }, icon, made("strong", {}, example.title), made("small", {}, example.text));
    card.setAttribute("aria-pressed", "false");
    card.addEventListener("click", () => openExample(example));
    return card;
  }));
}

async function begin() {
  const [found, shown, digitSamples] = await Promise.all([ask("models"), ask("examples"), ask("digits")]);
  models = found;
  examples = shown;
  $("model").replaceChildren(...models.map(({ name }) => made("option", { value: name }, name)));
  digitSamples.forEach(({ label }, i) => $("sample").append(made("option", { value: i }, `sample ${i} (a ${label})`)));
  $("sample").addEventListener("change", () => {
    const i = +$("sample").value;
    if ($("sample").value === "") return;
    Object.assign(page, NO_TARGET);
    page.inputs.set({ drawing: digitSamples[i].pixels }, i);
    markExample();
    explain();
  });
  showExamples();
  $("loading").hidden = true;
  $("workspace").hidden = false;
  const asked = recall();
  if (asked) {
    restore(asked);
    await explain();
  } else await openModel();
}

// open a model with its example, if it has one
async function openModel() {
  const example = examples.find(({ model }) => model === page.model.name);
  if (example) return openExample(example);
  changeModel();
  markExample();
  await explain();
}

$("model").addEventListener("change", openModel);
function nameColours() {
  const [positive, negative] = heat.names() ?? ["Dark", "Dark"];
  $("for-colour").textContent = positive;
  $("against-colour").textContent = negative.toLowerCase();
}

heat.chooser($("palette"), () => { nameColours(); if (page.answer) { show(); next.clear(); } });
nameColours();
for (const id of ["method", "rule", "gamma", "alpha", "epsilon", "part", "rather"]) $(id).addEventListener("input", () => { changeRules(); explain(); });
$("rather-form").addEventListener("submit", event => { event.preventDefault(); explain(); });
$("rather-token").addEventListener("change", () => explain());
$("over").addEventListener("change", () => page.answer && show());
$("heat").addEventListener("pointerdown", event => { if (page.answer?.relevance) pressed = answers.place(event, $("heat"), numbers(page.answer.relevance)); });
$("heat").addEventListener("pointerup", choosePlace);
$("heat").addEventListener("pointermove", readHeat);
$("heat").addEventListener("keydown", moveCursor);
$("likeliest").addEventListener("click", () => { Object.assign(page, NO_TARGET); explain(); });
$("show-beside").addEventListener("click", () => page.answer && next.compare(page));
$("show-check").addEventListener("click", () => page.answer && next.check(page));
$("show-layers").addEventListener("click", () => page.answer && next.layers(page));
const whenOpened = (id, result, work) => $(id).addEventListener("toggle", () => {
  if ($(id).open && page.answer && !$(result).textContent) work(page);
});
whenOpened("beside", "methods", next.compare);
whenOpened("check", "reliability", next.check);
whenOpened("flow", "layers", next.layers);
whenOpened("reuse", "code", next.copyCode);
whenOpened("attack", "twin", next.attack);
$("distance").addEventListener("input", () => { $("distance-value").textContent = $("distance").value; });
for (const id of ["distance", "by"]) $(id).addEventListener("change", () => next.attack(page)); // an attack is slow, so not at every step of the slider
$("link").addEventListener("click", async () => { $("copied").textContent = await next.copied(location.href); });
for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => page.answer && download(button.dataset.format));
language.listen(page);
attempt(async () => {
  try {
    await begin();
  } finally {
    $("loading").hidden = true;
  }
});
