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

const NAMES = {
  lrp: "LRP", shapley: "Shapley values", smooth_grad: "SmoothGrad", rise: "RISE", full_grad: "FullGrad", grad_cam: "Grad-CAM",
  grad_cam_plus_plus: "Grad-CAM++", layer_cam: "Layer-CAM", hires_cam: "HiRes-CAM", xgrad_cam: "XGrad-CAM", eigen_cam: "Eigen-CAM",
  score_cam: "Score-CAM", ablation_cam: "Ablation-CAM", gradient_times_input: "gradient × input", cp_lrp: "CP-LRP", mprt: "MPRT",
};
const ACRONYMS = /\b(srg|mprt|aopc|abpc|irof|mif|lif)\b/g;

// a short name of the library in the words of the field
export const inWords = name => NAMES[name] ?? name.replaceAll("_", " ").replace(ACRONYMS, word => word.toUpperCase());

export function options(select, values, chosen = values[0]) {
  select.replaceChildren(...values.map(value => option(value, chosen)));
}

const option = (value, chosen) => made("option", { value, selected: value === chosen }, inWords(value));

// options in groups, { label: values }
export function groupedOptions(select, groups, chosen) {
  select.replaceChildren(...Object.entries(groups).filter(([, values]) => values.length)
    .map(([label, values]) => made("optgroup", { label }, ...values.map(value => option(value, chosen)))));
}

// Show errors on the page, except those of aborted requests; return whether the work was done, "failed" or "aborted".
export async function attempt(work, place = $("error")) {
  try {
    place.hidden = true;
    await work();
    return "done";
  } catch (error) {
    if (error.name === "AbortError") return "aborted";
    place.textContent = error.message;
    place.hidden = false;
    return "failed";
  }
}

// Run work that takes a while: a progress bar with a button to cancel the requests of a kind, and errors in the same place.
// `work` is called with the function of (done, total) that moves the bar. The bar appears after `delay` milliseconds; `errors`
// is another place for errors. Return "done", "failed", "cancelled" by the user, or "aborted" by a newer request.
export async function working(place, kind, label, work, { delay = 0, errors } = {}) {
  let cancelled = false, bar, said;
  const error = errors ?? made("p", { className: "error", hidden: true, role: "alert" });
  const show = () => {
    bar = made("progress", { ariaLabel: label });
    said = made("span", {}, "preparing…");
    const cancel = made("button", { type: "button", className: "plain" }, "Cancel");
    cancel.addEventListener("click", () => { cancelled = true; drop(kind); });
    place.prepend(made("div", { className: "working" }, bar, said, cancel));
    place.hidden = false;
  };
  place.replaceChildren(...(errors ? [] : [error]));
  const shown = delay ? setTimeout(show, delay) : show();
  const progress = (done, total) => {
    if (!total || !bar) return;
    Object.assign(bar, { max: total, value: done });
    said.textContent = `${label} ${done} of ${total}`;
  };
  const end = await attempt(() => work(progress), error);
  clearTimeout(shown);
  place.querySelector(".working")?.remove();
  if (cancelled) place.append(made("p", { className: "quiet", role: "status" }, "Cancelled."));
  return cancelled ? "cancelled" : end;
}

export const digits = value => Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(3)).toString().replace("-", "−");

export const signed = value => (value > 0 ? "+" : "") + digits(value);

// a share of a positive output, as the end of a sentence; of others it would turn the sign around
export const percent = (part, whole) => whole > 0 ? `, ${digits(100 * part / whole)} % of the output` : "";

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
