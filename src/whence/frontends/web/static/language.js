// Questions to language models: what each written token rests on, and which document made the model write a sentence.

import { ask } from "./api.js";
import { coloured } from "./answers.js";
import { $, digits, made, signed, working } from "./dom.js";
import * as heat from "./heat.js";

export function show(model) {
  $("write").hidden = $("sources").hidden = !model.writes;
  $("as-chat-label").hidden = !model.chats;
  $("as-chat").checked = false;
  chat();
  for (const id of ["written", "found-sources"]) $(id).replaceChildren();
}

function chat() {
  $("messages").hidden = $("add-message").hidden = !$("as-chat").checked;
  if ($("as-chat").checked && !$("messages").children.length) addMessage("user");
}

function addMessage(role) {
  const choice = made("select", { ariaLabel: "Role" }, ...["system", "user", "assistant"].map(name => made("option", { value: name, selected: name === role }, name)));
  const content = made("textarea", { rows: 2, maxLength: 4000, ariaLabel: "Message" }), remove = made("button", { type: "button", className: "plain" }, "Remove");
  const row = made("div", { className: "document" }, choice, content, remove);
  remove.addEventListener("click", () => row.remove());
  $("messages").append(row);
}

function addDocument() {
  const count = $("documents").children.length + 1;
  const name = made("input", { type: "text", value: `document ${count}`, maxLength: 80, ariaLabel: "Name of the document" });
  const text = made("textarea", { rows: 2, maxLength: 4000, ariaLabel: "Text of the document" }), remove = made("button", { type: "button", className: "plain" }, "Remove");
  const row = made("div", { className: "document" }, name, text, remove);
  remove.addEventListener("click", () => row.remove());
  $("documents").append(row);
}

async function write(page) {
  $("written").replaceChildren();
  const busy = made("div", {}), result = made("div", {});
  $("written").append(busy, result);
  await working(busy, "generation", "token", async progress => {
    const messages = [...$("messages").children].map(row => ({ role: row.querySelector("select").value, content: row.querySelector("textarea").value }));
    const asked = { model: page.model.name, max_new_tokens: +$("new-tokens").value, contrast: $("contrast").checked };
    const prompt = $("as-chat").checked ? { messages } : { text: $("text").value };
    if (!$("as-chat").checked && !prompt.text.trim()) throw new Error("the text is empty; type the beginning of a text at 1, Input");
    showWritten(result, await ask("generation", { ...asked, ...prompt }, { progress }));
  });
}

// choose one of the new tokens, at first the last one: all tokens before it show what it rests on
function showWritten(place, { tokens, start, relevance, outputs, sums }) {
  const text = made("p", { className: "tokens" }), note = made("p", { className: "account" }), legend = made("div", { className: "legend" });
  note.setAttribute("aria-live", "polite");
  const choose = chosen => {
    const row = relevance[chosen - start], values = tokens.map((_, i) => i < chosen ? row[i] : 0), limit = heat.largest(values);
    const elements = coloured(tokens, values, "button", limit);
    elements.forEach((element, i) => {
      element.type = "button";
      element.disabled = i < start;
      if (i >= start) {
        element.classList.add("new");
        element.setAttribute("aria-pressed", i === chosen);
        element.addEventListener("click", () => { choose(i); text.children[i].focus(); });
      }
      if (i < start) element.style.opacity = 1;
    });
    text.replaceChildren(...elements);
    const best = values.indexOf(Math.max(...values));
    note.textContent = `“${tokens[chosen].trim()}”: output ${digits(outputs[chosen - start])}, relevance ${digits(sums[chosen - start])}; the largest part, ${signed(values[best])}, from “${tokens[best].trim()}”.`;
    heat.legend(legend, limit, `“${tokens[chosen].trim()}”`);
  };
  place.replaceChildren(made("p", { className: "quiet" }, "New tokens are underlined. Choose one to see what it rests on."), text, legend, note);
  choose(tokens.length - 1);
}

async function findSources(page) {
  $("found-sources").replaceChildren();
  const busy = made("div", {}), result = made("div", {});
  $("found-sources").append(busy, result);
  await working(busy, "sources", "evaluation", async progress => {
    const documents = [...$("documents").children].map(row => ({ name: row.querySelector("input").value, text: row.querySelector("textarea").value }))
      .filter(({ text }) => text.trim());
    if (!documents.length) throw new Error("give at least one document");
    const asked = { model: page.model.name, documents, question: $("sources-question").value, response: $("sources-response").value || null };
    showSources(result, await ask("sources", asked, { progress }));
  });
}

// the sentences of the answer; choosing one lights up its sources
function showSources(place, { statements, sources, scores, support, evaluations }) {
  const list = made("div", {}), note = made("p", { className: "account" });
  note.setAttribute("aria-live", "polite");
  const buttons = statements.map((statement, i) => {
    const button = made("button", { type: "button", className: "plain" }, statement);
    button.addEventListener("click", () => choose(i));
    return button;
  });
  const choose = chosen => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
    const limit = heat.largest(scores[chosen]), order = sources.map((_, k) => k).sort((a, b) => scores[chosen][b] - scores[chosen][a]);
    list.replaceChildren(...order.map(k => {
      const colour = heat.colour(0.6 * scores[chosen][k] / limit), row = made("div", { className: "source" }, made("b", {}, signed(scores[chosen][k])), made("span", {}, made("strong", {}, sources[k].name), `: ${sources[k].text}`));
      Object.assign(row.style, { background: heat.css(colour), color: heat.ink(colour) });
      return row;
    }));
    note.textContent = `Without “${sources[order[0]].name}” the log-probability of this part falls by ${digits(scores[chosen][order[0]])}. `
      + (support[chosen] > 0 ? `The context supports it (${signed(support[chosen])}).` : `Nothing in the context supports it (${signed(support[chosen])}).`);
  };
  place.replaceChildren(made("h3", {}, "Answer"), made("div", { className: "buttons", ariaLabel: "Parts of the answer" }, ...buttons),
    note, list, made("p", { className: "quiet" }, `From ${evaluations} evaluations of the model with other subsets of the documents. It shows what the model relies on, not what is true.`));
  choose(0);
}

export function listen(page) {
  $("as-chat").addEventListener("change", chat);
  $("add-message").addEventListener("click", () => addMessage("user"));
  $("add-document").addEventListener("click", addDocument);
  $("new-tokens").addEventListener("input", () => { $("new-tokens-value").textContent = $("new-tokens").value; });
  $("write-form").addEventListener("submit", event => { event.preventDefault(); write(page); });
  $("sources-form").addEventListener("submit", event => { event.preventDefault(); findSources(page); });
  addDocument();
  addDocument();
}
