// Prototypes of classes.

import { ask } from "./api.js";
import { $, attempt, digits, made, picture, tile, working } from "./dom.js";

let models = [];
const model = () => models.find(({ name }) => name === $("model").value);

// "0-9", "3, 5", "cat, dog"
const classes = words => words.split(",").map(word => word.trim()).filter(Boolean).flatMap(word => {
  const [, first, last] = word.match(/^(\d+)\s*-\s*(\d+)$/) ?? [];
  if (first === undefined) return [/^\d+$/.test(word) ? +word : word];
  return Array.from({ length: Math.max(0, Math.min(last - first, 20)) + 1 }, (_, i) => +first + i);
});

async function search() {
  $("note").textContent = "";
  await working($("busy"), "prototypes", "step", async progress => {
    const asked = { model: model().name, classes: classes($("which").value), prior: $("prior").value, n_steps: +$("steps").value };
    const answer = await ask("prototypes", asked, { progress });
    $("found").replaceChildren(...answer.prototypes.map(({ name, activation, share, picture: png }) =>
      tile(picture(png, `prototype of ${name}`), name, `output ${digits(activation)}, probability ${(100 * share).toFixed(1)} %`)));
    $("note").textContent = answer.note;
  });
}

function changeModel() {
  const bundled = model().name.startsWith("digits"), known = [...$("prior").options];
  for (const option of known) option.disabled = !bundled && ["expert", "decoder"].includes(option.value);
  $("prior").value = bundled ? "expert" : "none";
  $("which").value = bundled ? "0-9" : model().classes[0] ?? "0";
  $("found").replaceChildren();
}

await attempt(async () => {
  models = (await ask("models")).filter(({ takes }) => ["drawing", "picture"].includes(takes));
  if (!models.length) throw new Error("prototypes need a model of images; start the server with one");
  $("model").replaceChildren(...models.map(({ name }) => made("option", { value: name }, name)));
  changeModel();
  $("model").addEventListener("change", changeModel);
  $("steps").addEventListener("input", () => { $("steps-value").textContent = $("steps").value; });
  $("prototypes-form").addEventListener("submit", event => { event.preventDefault(); search(); });
});
