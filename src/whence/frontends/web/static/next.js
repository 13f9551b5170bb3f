// What one does after an explanation: compare methods, measure it, look inside, attack the network, copy the code.

import { ask, drop, numbers } from "./api.js";
import { coloured, decoded } from "./answers.js";
import { $, digits, inWords, made, picture, says, tile, working } from "./dom.js";
import * as heat from "./heat.js";

const OF_PICTURES = ["lrp", "gradient_times_input", "integrated_gradients", "smooth_grad", "sensitivity", "guided_backprop", "grad_cam", "occlusion"];
const BESIDE = {
  drawing: OF_PICTURES,
  picture: OF_PICTURES,
  text: ["lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "occlusion"],
  table: ["shapley", "integrated_gradients", "lrp", "gradient_times_input", "feature_ablation"],
  series: ["lrp", "gradient_times_input", "integrated_gradients", "smooth_grad", "sensitivity"],
};
let runs = 0; // counts the comparisons, so that an outdated one stops

export function clear() {
  runs += 1;
  for (const id of ["layers", "channels", "methods", "twin", "code"]) if ($(id).firstChild) $(id).replaceChildren();
  $("reliability").textContent = "";
  for (const kind of ["beside", "reliability", "layers", "attack", "channel", "code"]) drop(kind);
}

// the same output by other methods, shown as they finish; `page` gives the question, the model and the current answer
export async function compare(page) {
  const run = runs += 1, { takes, methods } = page.model, names = BESIDE[takes].filter(name => methods.includes(name)), asked = page.again({ target: page.answer.target.index });
  const found = [];
  $("methods").className = takes === "picture" || takes === "drawing" ? "tiles" : "tiles of-texts";
  $("methods").replaceChildren();
  await working($("beside-busy"), "beside", "method", async progress => {
    for (const [i, method] of names.entries()) {
      progress(i, names.length);
      const place = made(["picture", "drawing"].includes(takes) ? "canvas" : "div", { className: takes === "text" ? "tokens" : "" });
      const figure = tile(place, inWords(method), "…");
      $("methods").append(figure);
      const note = figure.querySelector("figcaption").lastChild;
      try {
        const answer = await ask("explain", { ...asked, method }, { kind: "beside" });
        if (run !== runs) return;
        found.push({ answer, place, name: inWords(method) });
        note.textContent = sum(answer);
        await paintBeside(found, page);
      } catch (error) {
        if (run !== runs) return;
        if (error.name === "AbortError") {
          figure.remove();
          throw error;
        }
        place.remove();
        note.textContent = error.message;
      }
    }
  });
  $("common").onchange = () => paintBeside(found, page);
}

function sum({ adds_up: addsUp, relevance_sum: relevance, baseline, absorbed, output }) {
  if (!addsUp) return "does not add up to the output";
  const rest = (baseline ?? 0) + (absorbed ?? 0), gap = Math.abs(output - relevance - rest) > 0.01 * Math.abs(output);
  if (gap) return `sums to ${digits(relevance + rest)} instead of ${digits(output)}`;
  const matters = Math.abs(rest) > 1e-4 * Math.abs(output);
  return `adds up: ${digits(relevance)}${matters ? ` + ${digits(rest)} ${baseline === null ? "absorbed" : "base value"}` : ""} of ${digits(output)}`;
}

async function paintBeside(found, { model: { takes }, over }) {
  const values = ({ relevance, features }) => features ? features.map(({ relevance: r }) => r) : numbers(relevance).values;
  const together = Math.max(1e-30, ...found.filter(({ answer }) => answer.adds_up).map(({ answer }) => heat.largest(values(answer))));
  for (const { answer, place, name } of found) {
    const own = values(answer), limit = $("common").checked && answer.adds_up ? together : heat.largest(own);
    if (takes === "text") place.replaceChildren(...coloured(answer.tokens, own, "span", limit));
    else if (takes === "table") place.replaceChildren(bars(answer.features, limit));
    else if (takes === "series") place.replaceChildren(...strips(answer, limit));
    else {
      heat.paint(place, numbers(answer.relevance), limit, over ? await decoded(answer.picture) : null);
      says(place, `heatmap by ${name}`);
    }
  }
}

function bars(features, limit) {
  const rows = [...features].sort((a, b) => Math.abs(b.relevance) - Math.abs(a.relevance)).slice(0, 6).map(({ name, relevance }) => {
    const bar = made("i", {}), share = 50 * Math.min(1, Math.abs(relevance) / limit);
    Object.assign(bar.style, { left: `${relevance < 0 ? 50 - share : 50}%`, width: `${share}%`, background: heat.css(heat.colour(0.5 * Math.sign(relevance))) });
    return made("tr", {}, made("th", { scope: "row" }, name), made("td", {}, made("div", { className: "track" }, bar)), made("td", {}, digits(relevance)));
  });
  return made("table", { className: "waterfall" }, made("tbody", {}, ...rows));
}

function strips(answer, limit) {
  const { shape: [, steps], values } = numbers(answer.relevance);
  return answer.channels.map((channel, c) => {
    const canvas = says(made("canvas", {}), `relevance of ${channel}`);
    heat.paint(canvas, { shape: [1, steps], values: values.subarray(c * steps, (c + 1) * steps) }, limit);
    Object.assign(canvas.style, { aspectRatio: "auto", height: "2rem", marginBottom: "2px" });
    return canvas;
  });
}

export async function check(page) {
  $("reliability").textContent = "";
  await working($("check-busy"), "reliability", "evaluating", async progress => {
    const { sentences } = await ask("reliability", page.again({ target: page.answer.target.index }), { progress });
    $("reliability").textContent = `${page.answer.target.name}: ${sentences.join(" ")}`;
  });
}

export async function copyCode(page) {
  await working($("code"), "code", "writing", async () => {
    const { file, sample } = page.source;
    const { python, command, hint } = await ask("code", page.again({ target: page.answer.target.index, file, sample }));
    const block = (name, text) => {
      const copy = made("button", { type: "button", className: "plain" }, `Copy ${name}`), done = made("span", { className: "quiet" });
      done.setAttribute("role", "status");
      copy.addEventListener("click", async () => { done.textContent = await copied(text); });
      const pre = made("pre", { className: "code", tabIndex: 0 }, made("code", {}, text));
      return [made("h3", {}, name), pre, made("div", { className: "buttons" }, copy, done)];
    };
    $("code").append(...block("Python", python), ...(command ? block("command", command) : []), ...(hint ? [made("p", { className: "quiet" }, hint)] : []));
  });
}

// copy to the clipboard, and return what to say
export async function copied(text) {
  if (!navigator.clipboard) return "the browser allows copying only on https or localhost; select the text instead";
  try {
    await navigator.clipboard.writeText(text);
    return "copied";
  } catch (error) {
    return `not copied: ${error.message}`;
  }
}

// an adversarial example within ε
export async function attack(page) {
  const epsilon = +$("distance").value;
  $("distance-value").textContent = digits(epsilon);
  drop("attack");
  $("twin").replaceChildren();
  if (!epsilon || !["drawing", "picture"].includes(page.model.takes) || page.inputs.empty) return;
  await working($("attack-busy"), "attack", "attacking", async () => {
    const answer = await ask("attack", page.again({ epsilon, attack: $("by").value }));
    const canvas = says(made("canvas", {}), `heatmap of the adversarial example for ${answer.target.name}`);
    heat.paint(canvas, numbers(answer.relevance));
    const likeliest = answer.classes.slice(0, 3).map(({ name, share }) => `${name}: ${(100 * share).toFixed(1)} %`).join(", ");
    $("twin").replaceChildren(
      tile(picture(answer.picture, "the adversarial example"), answer.success ? `predicted ${answer.target.name}, was ${answer.before}` : `still ${answer.before}`, likeliest),
      tile(canvas, `relevance for ${answer.target.name}`, `output ${digits(answer.output)}`),
    );
  });
}

export async function layers(page) {
  await working($("flow-busy"), "layers", "computing", async () => {
    const found = await ask("layers", page.again());
    const items = found.layers.map(layer => {
      const canvas = made("canvas", {}), map = numbers(layer.map);
      canvas.setAttribute("aria-hidden", "true");
      heat.paint(canvas, map);
      const sum = map.values.reduce((a, b) => a + b, 0);
      const button = made("button", { type: "button" }, canvas, made("span", {}, `${layer.name} ${layer.kind}`),
        made("small", {}, `${layer.shape.join(" × ")}, ΣR ${digits(sum)}`));
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => press(button, () => channels(page, layer, found.target)));
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

function channels(page, layer, target) {
  $("channels").replaceChildren(made("p", {}, `The most relevant channels of layer ${layer.name} (${layer.kind}) for ${target.name}. `
    + "Choose one to see the relevance that flows through it."), ...layer.channels.map(({ channel, share }) => {
    const button = made("button", { type: "button" }, `channel ${channel}`, made("small", {}, `${(100 * share).toFixed(1)} % of the output`));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => press(button, () => working($("flow-busy"), "through", "computing", async () => {
      const found = await ask("through", page.again({ target: target.index, layer: layer.name, channel }));
      const canvas = button.querySelector("canvas") ?? button.insertBefore(made("canvas", {}), button.firstChild);
      says(canvas, `relevance through channel ${channel}: ${digits(found.amount)} of ${digits(found.output)}`);
      const relevance = numbers(found.relevance);
      heat.paint(canvas, relevance, heat.largest(relevance.values), page.over ? await decoded(page.answer.picture) : null);
      concept(page, layer.name, channel, target);
    }, { delay: 300 })));
    return button;
  }));
}

// the prototype of a channel, and the parts of the data where it is most relevant
function concept(page, layer, channel, target) {
  $("concept")?.remove();
  const search = made("button", { type: "button", className: "plain" }, `Show what channel ${channel} responds to`), busy = made("div", {}), found = made("div", { className: "tiles" });
  $("channels").append(made("div", { id: "concept" }, search, busy, found));
  search.addEventListener("click", async () => {
    search.disabled = true;
    await working(busy, "channel", "searching", async progress => {
      const answer = await ask("channel", page.again({ target: target.index, layer, channel }), { progress });
      found.replaceChildren(
        tile(picture(answer.prototype, `prototype of channel ${channel}`), "prototype", "what it responds to most"),
        ...answer.references.map(({ index, picture: png }) => tile(picture(png, `a part of sample ${index}`), `sample ${index}`)),
      );
      search.remove();
      if (!answer.references.length) found.append("Start the server with --data FOLDER to see samples where it is relevant.");
    });
    search.disabled = false;
  });
}
