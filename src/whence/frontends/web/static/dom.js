// Small DOM helpers of all pages.

import { drop } from "./api.js";

export const $ = id => document.getElementById(id);

export function made(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// an element of an SVG
export function drawn(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// a short name of the library as words: "grad_cam" as "grad CAM"
export const inWords = name => name.replaceAll("_", " ").replace(/\b(lrp|cam|srg|mprt|aopc|abpc|irof|mif|lif)\b/g, word => word.toUpperCase()).replace("shapley", "Shapley values");

export function options(select, values, chosen = values[0]) {
  select.replaceChildren(...values.map(value => made("option", { value, selected: value === chosen }, inWords(value))));
}

// show errors on the page, except those of aborted requests
export async function attempt(work, place = $("error")) {
  try {
    place.hidden = true;
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    place.textContent = error.message;
    place.hidden = false;
  }
}

// Run work that takes a while: a progress bar with a button to cancel the requests of a kind, and errors in the same place.
// `work` is called with the function of (done, total) that moves the bar. The bar appears after `delay` milliseconds; `errors`
// is another place for errors.
export async function working(place, kind, label, work, { delay = 0, errors } = {}) {
  const bar = made("progress", {}), said = made("span", {}, label);
  const cancel = made("button", { type: "button", className: "plain" }, "Cancel"), error = made("p", { className: "error", hidden: true });
  bar.setAttribute("aria-label", label);
  error.setAttribute("role", "alert");
  const row = made("div", { className: "working", hidden: delay > 0 }, bar, said, cancel), shown = setTimeout(() => { row.hidden = false; }, delay);
  cancel.addEventListener("click", () => drop(kind));
  place.replaceChildren(row, ...(errors ? [] : [error]));
  place.hidden = false;
  const progress = (done, total) => {
    if (!total) return;
    Object.assign(bar, { max: total, value: done });
    said.textContent = `${label} ${done} of ${total}`;
  };
  await attempt(() => work(progress), errors ?? error);
  clearTimeout(shown);
  row.remove();
}

export const digits = value => Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(3)).toString().replace("-", "−");

export const signed = value => (value > 0 ? "+" : "") + digits(value);

export const percent = (part, whole) => whole ? `${digits(100 * part / whole)} %` : "–";

export function tile(canvasOrImage, ...lines) {
  return made("figure", {}, canvasOrImage, made("figcaption", {}, ...lines.map(line => made("span", {}, line))));
}

// describe a canvas for screen readers
export function says(canvas, words) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", words);
  return canvas;
}

export const picture = (png, alt) => made("img", { src: `data:image/png;base64,${png}`, alt });
