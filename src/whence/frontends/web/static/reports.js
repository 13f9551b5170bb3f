// Evaluations and audits as self-contained pages, shown in a frame without scripts.

import { ask } from "./api.js";
import { $, attempt, inWords, made, working } from "./dom.js";

let models = [];

function choices(place, names, usual, about = {}) {
  place.replaceChildren(...names.map(value => made("label", {},
    made("input", { type: "checkbox", value, checked: usual.includes(value) }), ` ${inWords(value)}`,
    ...(about[value] ? [made("small", {}, about[value])] : []))));
}

const chosen = place => [...place.querySelectorAll("input:checked")].map(({ value }) => value);

async function make(path, question, label) {
  const buttons = document.querySelectorAll("form button");
  buttons.forEach(button => { button.disabled = true; });
  await working($(`${path}-busy`), path, label, async progress => {
    if ([question.methods, question.metrics].some(names => names?.length === 0)) throw new Error("choose at least one method and one metric");
    const { address } = await ask(path, question, { progress });
    $("report").src = $("open").href = $("save").href = address;
    $("report-section").hidden = false;
    $("report-section").scrollIntoView();
  });
  buttons.forEach(button => { button.disabled = false; });
}

function changeModel() {
  const { name, data } = models.find(one => one.name === $("model").value);
  $("of-data").textContent = data ? `Scores of methods that explain ${name}, on its data.`
    : `To evaluate explanations of ${name}, start the server with data: whence serve --model ${name} --data FOLDER.`;
  for (const id of ["evaluation-busy", "audit-busy"]) $(id).replaceChildren();
  $("evaluation").hidden = !data;
  $("tested-label").hidden = !data;
  if (!data) $("tested").checked = false;
}

await attempt(async () => {
  models = await ask("models");
  $("model").replaceChildren(...models.map(({ name }) => made("option", { value: name }, name)));
  const { methods, metrics, usual, about } = await ask("measures"), stores = await ask("stores");
  choices($("methods"), methods, usual);
  choices($("metrics"), metrics, usual, about);
  $("audit").hidden = !stores.length;
  $("store").replaceChildren(...stores.map(name => made("option", { value: name }, name)));
  $("of-stores").textContent = stores.length ? "Clusters of the explanations of a store, suspicious ones first."
    : "To audit explanations of many samples, create a store and start the server with it: whence explain-dataset … --out STORE, then whence serve --store STORE.";
  changeModel();
  $("model").addEventListener("change", changeModel);
  $("count").addEventListener("input", () => { $("count-value").textContent = $("count").value; });
  $("evaluation").addEventListener("submit", event => {
    event.preventDefault();
    const asked = { model: $("model").value, methods: chosen($("methods")), metrics: chosen($("metrics")), count: +$("count").value };
    make("evaluation", asked, "evaluating");
  });
  $("audit").addEventListener("submit", event => {
    event.preventDefault();
    const asked = { store: $("store").value, group_by: $("group").value, layer: $("layer").value || null };
    make("audit", $("tested").checked ? { ...asked, model: $("model").value } : asked, "auditing");
  });
});
