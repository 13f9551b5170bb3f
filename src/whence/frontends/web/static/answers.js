// The answer to the current question, drawn by its kind: heatmap, tokens, waterfall of columns, or curves.

import { numbers } from "./api.js";
import { $, digits, drawn, made, percent, says, signed } from "./dom.js";
import * as heat from "./heat.js";

const COLUMNS = 14; // of a table, beyond which they are summed up
const KINDS = ["heat", "tokens", "waterfall", "curves"];

export function clear(words) {
  for (const id of [...KINDS, "cursor", "legend", "account"]) $(id).hidden = true;
  $("empty").hidden = false;
  $("empty").textContent = words;
  $("readout").textContent = "";
}

const READ = {
  text: "Point at a token, or use the arrow keys, to read its relevance.",
  series: "Point at a curve, or use the arrow keys, to read its values.",
  table: "",
};
const UNSIGNED = ["sensitivity", "eigen_cam"]; // methods whose relevance says how much, not for or against

// show an answer; `press` is called with the index of a token
export async function show(answer, takes, { under, press }) {
  const shown = { text: "tokens", table: "waterfall", series: "curves" }[takes] ?? "heat", name = answer.target.name.trim() || "␣";
  for (const id of KINDS) $(id).hidden = id !== shown;
  $("cursor").hidden = true;
  $("empty").hidden = true;
  $("workspace").classList.toggle("wide-answer", ["table", "series"].includes(takes));
  const relevance = takes === "table" ? { values: answer.features.map(({ relevance: r }) => r) } : numbers(answer.relevance);
  const limit = heat.largest(relevance.values), nothing = !relevance.values.some(Boolean);
  if (takes === "table") showColumns(answer);
  else if (takes === "text") showTokens(answer, relevance.values, press);
  else if (takes === "series") showCurves(answer, relevance, limit);
  else await showHeat(answer, relevance, limit, under);
  heat.legend($("legend"), limit, name, { unsigned: UNSIGNED.includes(answer.method), ticks: takes !== "table" });
  $("legend").hidden = nothing;
  $("readout").textContent = nothing ? "Nothing in the input speaks for or against it." : press ? `${READ.text} Click it to ask why it was predicted.`
    : READ[takes] ?? "Point at a pixel to read its relevance, or use the arrow keys.";
  $("account").replaceChildren(account(answer), made("small", {}, scale(answer)));
  $("account").hidden = false;
}

// how the output relates to the probability that is listed
function scale({ kind, target, classes, output }) {
  const listed = classes.find(({ index }) => index === target.index);
  if (kind !== "classes" || listed?.share === undefined || target.name !== listed.name || Math.abs(listed.share - output) < 1e-3) return "";
  return `The output is the network's score, before softmax makes ${(100 * listed.share).toFixed(1)} % of it.`;
}

function account({ target, output, adds_up: addsUp, relevance_sum: sum, absorbed, absorbed_by: layers, baseline, caution, note }) {
  const parts = [`relevance ${digits(sum)}`];
  if (baseline !== null) parts.push(`base value ${digits(baseline)} (the output without the features)`);
  if (Math.abs(absorbed ?? 0) > 1e-5 * Math.abs(output)) {
    const most = layers.filter(({ amount }) => Math.abs(amount) > 0.1 * Math.abs(absorbed)).map(({ layer, kind, amount }) => `${layer}${kind && `, ${kind}`} ${digits(amount)}`);
    parts.push(`absorbed by biases and stabilisers ${digits(absorbed)}${most.length ? ` (most in ${most.join("; ")})` : ""}`);
  }
  const equals = addsUp ? "=" : "; this method does not add up to it:";
  return `${target.name.trim() || "␣"}: output ${digits(output)} ${equals} ${parts.join(" + ")}${caution ? `. ${caution}` : ""}${note ? ` (${note})` : ""}`;
}

async function showHeat(answer, relevance, limit, under) {
  const image = under ? await decoded(answer.picture) : null;
  heat.paint($("heat"), relevance, limit, image);
  outline($("heat"), answer, relevance.shape);
  says($("heat"), `Heatmap of relevance for ${answer.target.name}`);
  $("heat").classList.toggle("choosable", ["boxes", "map"].includes(answer.kind));
}

export async function decoded(png) {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  return image;
}

// the pixel of the input that an event points at
export function place(event, canvas, { shape }) {
  const [height, width] = shape.slice(-2), edges = canvas.getBoundingClientRect();
  const x = (event.clientX - edges.left) / edges.width * width, y = (event.clientY - edges.top) / edges.height * height;
  return [Math.max(0, Math.min(Math.floor(x), width - 1)), Math.max(0, Math.min(Math.floor(y), height - 1))];
}

// the pixel of the largest relevance
export function strongest(answer) {
  const { shape, values } = numbers(answer.relevance), at = values.reduce((best, r, i) => Math.abs(r) > Math.abs(values[best]) ? i : best, 0);
  return [at % shape.at(-1), Math.floor(at / shape.at(-1))];
}

// read the relevance of a pixel, and mark it if asked by the keyboard
export function readPixel(answer, [x, y], marked = false) {
  const { shape, values } = numbers(answer.relevance), [height, width] = shape.slice(-2), r = values[y * width + x];
  $("cursor").hidden = !marked;
  Object.assign($("cursor").style, { left: `${100 * x / width}%`, top: `${100 * y / height}%`, width: `${100 / width}%`, height: `${100 / height}%` });
  $("readout").textContent = `x ${x}, y ${y}: relevance ${signed(r)}${percent(r, answer.output)}`;
}

// draw the boxes of a detector, the explained one thick, or the point or box of a segmentation
function outline(canvas, answer, shape) {
  const [height, width] = shape.slice(-2), pen = canvas.getContext("2d");
  const scale = canvas.width / width, vertical = canvas.height / height;
  const strokes = path => [["white", 3], ["black", 1.5]].forEach(([style, line]) => {
    Object.assign(pen, { strokeStyle: style, lineWidth: line });
    path();
  });
  const frame = ([left, top, right, bottom]) => strokes(() => pen.strokeRect(left * scale, top * vertical, (right - left) * scale, (bottom - top) * vertical));
  for (const { box, index, name } of answer.classes.filter(({ box }) => box)) {
    const chosen = index === answer.target.index;
    pen.globalAlpha = chosen ? 1 : 0.5;
    frame(box);
    if (chosen) {
      pen.font = "14px sans-serif";
      const y = Math.max(16, box[1] * vertical), x = Math.max(0, box[0] * scale);
      pen.fillStyle = "black";
      pen.fillRect(x, y - 16, pen.measureText(name).width + 6, 16);
      pen.fillStyle = "white";
      pen.fillText(name, x + 3, y - 4);
    }
  }
  pen.globalAlpha = 1;
  if (answer.box) frame(answer.box);
  if (answer.point) {
    const [x, y] = answer.point;
    strokes(() => { pen.beginPath(); pen.arc((x + 0.5) * scale, (y + 0.5) * vertical, 6, 0, 7); pen.stroke(); });
  }
}

// tokens as elements with the colours of their relevance
export const coloured = (tokens, values, tag, limit = heat.largest(values)) => tokens.map((token, i) => {
  const colour = heat.colour(values[i] / limit), element = made(tag, { title: `relevance ${signed(values[i])}` }, token || "␣");
  Object.assign(element.style, { background: heat.css(colour), color: heat.ink(colour) });
  return element;
});

function showTokens(answer, values, press) {
  const tokens = coloured(answer.tokens, values, press ? "button" : "span");
  let at = -1;
  $("tokens").tabIndex = press ? -1 : 0;
  $("tokens").onkeydown = event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    at = Math.max(0, Math.min(tokens.length - 1, at + move));
    tokens.forEach((element, i) => element.classList.toggle("current", i === at));
    if (press) tokens[at].focus();
    tokens[at].dispatchEvent(new Event("pointerenter"));
  };
  tokens.forEach((element, i) => {
    const read = () => { $("readout").textContent = `“${answer.tokens[i].trim()}”: relevance ${signed(values[i])}${percent(values[i], answer.output)}`; };
    element.addEventListener("pointerenter", read);
    element.addEventListener("focus", read);
    if (!press) return;
    element.type = "button";
    element.addEventListener("click", () => press(i));
  });
  $("tokens").replaceChildren(...tokens);
}

// bars that lead from the base value to the output; for methods that do not add up, bars from zero
function showColumns({ features, output, baseline, absorbed, adds_up: addsUp, relevance_sum: sum }) {
  const order = [...features].sort((a, b) => Math.abs(b.relevance) - Math.abs(a.relevance)), rest = order.splice(COLUMNS);
  const rows = order.map(({ name, value, relevance }) => ({ name, value, amount: relevance }));
  if (rest.length) rows.push({ name: `${rest.length} other columns`, value: "", amount: rest.reduce((total, { relevance }) => total + relevance, 0) });
  if (addsUp && Math.abs(absorbed ?? 0) > 1e-5 * Math.abs(output)) rows.push({ name: "absorbed by biases", value: "", amount: absorbed, grey: true });
  let level = baseline ?? 0;
  for (const row of rows) {
    row.from = addsUp ? level : 0;
    level = row.to = row.from + row.amount;
  }
  const ends = rows.flatMap(({ from, to }) => [from, to]).concat(addsUp ? [output, baseline ?? 0] : [0]);
  const low = Math.min(...ends), span = Math.max(...ends) - low || 1, at = value => 100 * (value - low) / span;
  const decimals = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(span)))), fixed = value => value.toFixed(decimals).replace("-", "−");
  const line = (name, value, amount, ...marks) => made("tr", {}, made("th", { scope: "row" }, made("b", {}, name), value === "" ? "" : ` = ${value}`),
    made("td", {}, made("div", { className: "track" }, ...marks)), made("td", {}, amount));
  const mark = value => {
    const tick = made("u", {});
    tick.style.left = `${at(value)}%`;
    return tick;
  };
  const bars = rows.map(({ name, value, amount, from, to, grey }) => {
    const bar = made("i", {});
    Object.assign(bar.style, { left: `${at(Math.min(from, to))}%`, width: `${Math.abs(at(to) - at(from))}%`, background: grey ? "#8a8f98" : heat.css(heat.colour(0.5 * Math.sign(amount))) });
    bar.classList.toggle("against", amount < 0);
    return line(name, value, (amount > 0 ? "+" : "") + fixed(amount), bar);
  });
  const first = addsUp ? [line("base value", "", fixed(baseline ?? 0), mark(baseline ?? 0))] : [];
  const last = addsUp ? [line("output", "", fixed(output), mark(output))] : [line("sum", "", digits(sum))];
  $("waterfall").replaceChildren(made("table", { className: "waterfall" }, made("tbody", {}, ...first, ...bars, ...last)));
}

// a curve for each channel, on a background with the colours of its relevance
function showCurves(answer, relevance, limit) {
  const { channels, sampling_rate: rate } = answer, { shape: [, steps], values: series } = numbers(answer.series);
  const time = step => rate ? `${digits(step / rate)} s` : `step ${step}`;
  const curves = channels.map((channel, c) => {
    const own = series.subarray(c * steps, (c + 1) * steps), r = relevance.values.subarray(c * steps, (c + 1) * steps);
    const low = Math.min(...own), span = Math.max(...own) - low || 1;
    const points = Array.from(own, (value, t) => `${t + 0.5},${(95 - 90 * (value - low) / span).toFixed(2)}`).join(" ");
    const canvas = made("canvas", {}), svg = drawn("svg", { viewBox: `0 0 ${steps} 100`, preserveAspectRatio: "none" });
    const cursor = drawn("line", { y1: 0, y2: 100, x1: -1, x2: -1 });
    heat.paint(canvas, { shape: [1, steps], values: r }, limit);
    canvas.style.aspectRatio = "auto";
    svg.append(drawn("polyline", { points, class: "edge" }), drawn("polyline", { points }), cursor);
    const total = r.reduce((sum, value) => sum + value, 0);
    says(svg, `${channel}: relevance ${digits(total)} in all`);
    svg.setAttribute("tabindex", "0");
    let at = 0;
    const read = step => {
      at = Math.max(0, Math.min(steps - 1, step));
      for (const side of ["x1", "x2"]) cursor.setAttribute(side, at + 0.5);
      $("readout").textContent = `${channel} at ${time(at)}: value ${digits(own[at])}, relevance ${signed(r[at])}${percent(r[at], answer.output)}`;
    };
    svg.addEventListener("pointermove", event => {
      const edges = svg.getBoundingClientRect();
      read(Math.floor((event.clientX - edges.left) / edges.width * steps));
    });
    svg.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      read(at + move);
    });
    return [made("p", { className: "quiet" }, `${channel}: relevance ${digits(total)}${percent(total, answer.output)}`), made("div", { className: "curve" }, canvas, svg)];
  });
  const axis = made("div", { className: "axis" }, ...[0, steps / 2, steps].map(step => made("span", {}, time(step))));
  $("curves").replaceChildren(...curves.flat(), axis);
}
