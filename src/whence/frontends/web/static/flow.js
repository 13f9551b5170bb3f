// A tiny network step by step: forward, then relevance from the output down, a layer at a time, with all numbers.

import { ask } from "./api.js";
import { $, attempt, digits, drawn, made, options } from "./dom.js";
import * as heat from "./heat.js";

const ACROSS = 320, DOWN = 120, RADIUS = 34, EDGE = 60;
const FORMULAS = {
  alpha_beta: "Rᵢ←ⱼ = ( α (aᵢwᵢⱼ)⁺ / Σᵢ (aᵢwᵢⱼ)⁺ − β (aᵢwᵢⱼ)⁻ / Σᵢ (aᵢwᵢⱼ)⁻ ) Rⱼ",
  gamma: "Rᵢ←ⱼ = aᵢ (wᵢⱼ + γ wᵢⱼ⁺) / Σᵢ aᵢ (wᵢⱼ + γ wᵢⱼ⁺) · Rⱼ",
  epsilon: "Rᵢ←ⱼ = aᵢwᵢⱼ / ( Σᵢ aᵢwᵢⱼ + ε sign(Σᵢ aᵢwᵢⱼ) ) · Rⱼ",
  z_plus: "Rᵢ←ⱼ = aᵢwᵢⱼ⁺ / Σᵢ aᵢwᵢⱼ⁺ · Rⱼ",
};
const state = { found: null, step: 0 };

async function compute() {
  $("alpha-value").textContent = $("alpha").value;
  $("gamma-value").textContent = $("gamma").value;
  $("epsilon-value").textContent = $("epsilon").value;
  for (const label of document.querySelectorAll("[data-rule]")) label.hidden = label.dataset.rule !== $("rule").value;
  await attempt(async () => {
    for (const id of ["a1", "a2"]) if (!$(id).value || !$(id).checkValidity()) throw new Error(`${id} must be a number from 0 to 100`);
    const settings = { rule: $("rule").value, alpha: +$("alpha").value, gamma: +$("gamma").value, epsilon: +$("epsilon").value };
    state.found = await ask("steps", { way: $("way").value, inputs: [+$("a1").value, +$("a2").value], settings });
    show();
  });
}

// step 0: forward pass; 1: relevance of the output; then one layer in each step
function show() {
  const { columns, edges } = state.found, last = edges.length + 1;
  state.step = Math.min(state.step, last);
  const through = last - state.step; // index of the current edges, counted from the input
  $("back").disabled = state.step === 0;
  $("next").disabled = state.step === last;
  if (document.activeElement === document.body) $(state.step ? "back" : "next").focus(); // a disabled button loses it
  const top = columns.length - 1, names = `${columns[top].names[0]} = ${digits(columns[top].activations[0])}`;
  $("step").textContent = state.step === 0 ? `Step 0 of ${last}: the forward pass gives ${names}.`
    : state.step === 1 ? `Step 1 of ${last}: the relevance of ${columns[top].names[0]} is its activation.`
      : `Step ${state.step} of ${last}: relevance goes from ${columns[through + 1].names.join(", ")} down to ${columns[through].names.join(", ")}.`;
  draw(columns, edges, through);
  const messages = state.step > 1 ? edges[through] : null;
  $("formula").textContent = messages ? FORMULAS[$("rule").value] : "";
  $("numbers").replaceChildren(...(messages ? table(columns, through, messages) : []));
}

function draw(columns, edges, through) {
  const tallest = Math.max(...columns.map(({ names }) => names.length)), width = ACROSS * (columns.length - 1) + 2 * EDGE, height = DOWN * tallest;
  const x = k => EDGE + ACROSS * k, y = (k, i) => height / 2 + DOWN * (i - (columns[k].names.length - 1) / 2);
  const limit = Math.max(...columns.flatMap(({ relevance }) => relevance.map(Math.abs)), 1e-12), svg = $("network");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  const lines = [], labels = [];
  edges.forEach(({ messages, weight }, k) => messages.forEach((row, j) => row.forEach((r, i) => {
    const w = weight[j][i], seen = k >= through && state.step > 1;
    if (!w) return;
    const line = drawn("line", { x1: x(k), y1: y(k, i), x2: x(k + 1), y2: y(k + 1, j), class: k === through && state.step > 1 ? "now" : "" });
    line.style.stroke = seen && r ? heat.css(heat.colour(Math.sign(r) * Math.max(0.3, Math.min(1, Math.abs(r) / limit)))) : "";
    line.style.strokeWidth = seen ? 1.5 + 6 * Math.abs(r) / limit : 1.5;
    lines.push(line);
    const t = 0.32 + 0.36 * (j % 3) / 2, at = { x: x(k) + t * ACROSS, y: y(k, i) + t * (y(k + 1, j) - y(k, i)) };
    labels.push(words(at, seen ? `w ${digits(w)}, R ${digits(r)}` : `w ${digits(w)}`, "edge"));
  })));
  const circles = columns.flatMap(({ names, activations, relevance }, k) => names.flatMap((name, i) => {
    const seen = k > through || (k === through && state.step > 1), r = relevance[i], at = { x: x(k), y: y(k, i) };
    const colour = heat.colour(seen ? Math.max(-0.75, Math.min(0.75, 0.75 * r / limit)) : 0);
    const circle = drawn("circle", { cx: at.x, cy: at.y, r: RADIUS });
    circle.style.fill = heat.css(colour);
    const inside = [words({ x: at.x, y: at.y - (seen ? 7 : 0) }, `${name} = ${digits(activations[i])}`, "unit")];
    if (seen) inside.push(words({ x: at.x, y: at.y + 11 }, `R ${digits(r)}`, "unit"));
    for (const word of inside) word.style.fill = heat.ink(colour);
    return [circle, ...inside];
  }));
  svg.replaceChildren(...lines, ...labels, ...circles);
}

function table(columns, k, { messages, weight }) {
  const below = columns[k], above = columns[k + 1], sums = weight.map(row => row.reduce((sum, w, i) => sum + w * below.activations[i], 0));
  const head = made("thead", {}, made("tr", {}, ...["from → to", "a", "w", "z = a·w", "Σ z", "R above", "message"].map(word => made("th", { scope: "col" }, word))));
  const rows = messages.flatMap((row, j) => row.map((r, i) => [
    `${above.names[j]} → ${below.names[i]}`, below.activations[i], weight[j][i], below.activations[i] * weight[j][i], sums[j], above.relevance[j], r,
  ]));
  const body = made("tbody", {}, ...rows.map(row => made("tr", {}, ...row.map((cell, c) => made("td", {}, c ? digits(cell) : cell)))));
  const totals = below.names.map((name, i) => `${name} receives ${messages.map(row => digits(row[i])).join(" + ")} = ${digits(below.relevance[i])}`);
  return [made("caption", {}, totals.join("; ")), head, body];
}

function words(at, text, kind) {
  const element = drawn("text", { ...at, class: kind });
  element.textContent = text;
  return element;
}

await attempt(async () => {
  options($("way"), await ask("ways"), "max, symmetric");
  heat.chooser($("palette"), () => state.found && show());
  for (const id of ["way", "a1", "a2", "rule", "alpha", "gamma", "epsilon"]) $(id).addEventListener("input", compute);
  $("back").addEventListener("click", () => { state.step -= 1; show(); });
  $("next").addEventListener("click", () => { state.step += 1; show(); });
  await compute();
});
