// Small DOM helpers of all pages.

export const $ = id => document.getElementById(id);

export function made(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

export function options(select, values, chosen = values[0]) {
  select.replaceChildren(...values.map(value => made("option", { value, selected: value === chosen }, value.replaceAll("_", " "))));
}

// show errors on the page, except those of aborted requests
export async function attempt(work) {
  try {
    $("error").hidden = true;
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

export const digits = value => Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(3)).toString().replace("-", "−");

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
