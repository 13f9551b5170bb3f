// The input of each kind of model: a drawing, a photo, a text, a row of a table, a time series.

import { base64 } from "./api.js";
import * as csv from "./csv.js";
import { $, made } from "./dom.js";
import { Drawing } from "./drawing.js";

const MAX_IMAGE = 8 * 2 ** 20, MAX_CSV = 500_000;
const KINDS = ["drawing", "picture", "text", "table", "series"];

export class Inputs {
  // `changed` is called after each change by the user, `failed` with errors
  constructor(changed, failed) {
    Object.assign(this, { changed, failed, picture: null, origin: {} });
    this.drawing = new Drawing($("drawing"), () => { $("draw-here").hidden = true; $("sample").value = ""; changed(); });
    this.listen();
  }

  show(model) {
    this.model = model;
    for (const kind of KINDS) $(`${kind}-input`).hidden = model.takes !== kind;
    if (model.takes !== "picture" || !this.origin.file) { // a photo of the user stays for the next model
      this.picture = null;
      this.origin = {};
      $("picture").hidden = true;
      $("file").value = "";
    }
    for (const id of ["csv-file", "series-file"]) $(id).value = "";
    if (model.takes === "table") this.table = model.columns.join(",");
    if (model.takes === "series") {
      $("series-csv").value = "";
      const rate = model.sampling_rate ? `, ${model.sampling_rate} a second` : "";
      $("series-help").textContent = `One row for each time step${rate}; columns: ${model.columns.join(", ")}.`;
    }
  }

  // put an example or a stored question in
  set(input, sample = null) {
    if (input.drawing) this.drawing.bytes = Uint8Array.from(atob(input.drawing), c => c.charCodeAt(0));
    if (input.picture) this.picture = input.picture;
    if (input.text) $("text").value = input.text;
    if (input.table) this.table = input.table;
    if (input.row) {
      $("row").value = input.row;
      this.showFields();
    }
    if (input.series) $("series-csv").value = input.series;
    this.origin = { sample, question: this.key };
    $("draw-here").hidden = true;
  }

  get key() { return JSON.stringify(this.question); }

  // the sample or the file that the input is, unless it was edited since
  get source() {
    const { sample = null, file = null, question } = this.origin;
    return question === this.key ? { sample, file } : { sample: null, file: null };
  }

  get question() {
    switch (this.model.takes) {
      case "drawing": return { drawing: this.drawing.encoded };
      case "picture": return { picture: this.picture };
      case "text": return { text: $("text").value };
      case "table": return { table: $("csv").value, row: +$("row").value };
      default: return { series: $("series-csv").value };
    }
  }

  get empty() {
    if (this.model.takes === "drawing") return !this.drawing.bytes.some(Boolean);
    const [first] = Object.values(this.question), rows = this.model.takes === "table" ? $("row").options.length : 1;
    return !first?.trim() || !rows;
  }

  set table(text) {
    $("csv").value = text;
    this.readRows();
  }

  // the rows of the table to choose from, and a field for each value of the chosen one
  readRows() {
    this.rows = csv.parse($("csv").value, this.model.columns);
    const count = Math.max(0, this.rows.length - 1), before = Math.min(+$("row").value, count - 1);
    $("row").replaceChildren(...Array.from({ length: count }, (_, i) => made("option", { value: i }, `row ${i + 1} of ${count}`)));
    $("row").value = Math.max(0, before);
    this.showFields();
  }

  showFields() {
    const [names, ...rows] = this.rows, row = rows[+$("row").value];
    $("fields").hidden = !row;
    $("fields").replaceChildren(...(row ?? []).map((value, i) => {
      const input = made("input", { type: "text", value });
      input.addEventListener("change", () => {
        row[i] = input.value.trim();
        $("csv").value = csv.write(this.rows);
        this.changed();
      });
      return made("label", {}, (names[i] ?? "").trim(), input);
    }));
  }

  listen() {
    const submitted = (id, work) => $(id).addEventListener("submit", event => { event.preventDefault(); work(); });
    $("clear").addEventListener("click", () => { this.drawing.clear(); $("draw-here").hidden = false; $("sample").value = ""; this.changed(); });
    for (const kind of ["text", "table", "series"]) submitted(`${kind}-input`, () => this.changed());
    $("row").addEventListener("change", () => { this.showFields(); this.changed(); });
    $("csv").addEventListener("change", () => { this.readRows(); this.changed(); });
    $("file").addEventListener("change", () => this.readImage($("file").files[0]));
    $("csv-file").addEventListener("change", () => this.readCsv($("csv-file").files[0]));
    $("series-file").addEventListener("change", () => this.readCsv($("series-file").files[0]));
    for (const [id, read] of [["drop", file => this.readImage(file)], ["series-drop", file => this.readCsv(file)]]) {
      $(id).addEventListener("dragover", event => { event.preventDefault(); $(id).classList.add("over"); });
      $(id).addEventListener("dragleave", () => $(id).classList.remove("over"));
      $(id).addEventListener("drop", event => { event.preventDefault(); $(id).classList.remove("over"); read(event.dataTransfer.files[0]); });
    }
    addEventListener("paste", event => {
      const [file] = event.clipboardData?.files ?? [];
      if (file && this.model?.takes === "picture") this.readImage(file);
    });
  }

  async readImage(file) {
    if (!file) return;
    await this.failed(async () => {
      if (file.size > MAX_IMAGE) throw new Error("the image is larger than 8 MiB; choose a smaller one");
      this.picture = base64(new Uint8Array(await file.arrayBuffer()));
      this.origin = { file: file.name, question: this.key };
      await this.changed();
    });
  }

  async readCsv(file) {
    if (!file) return;
    await this.failed(async () => {
      if (file.size > MAX_CSV) throw new Error("the file is larger than 500 kB; choose fewer rows");
      const text = await file.text();
      if (this.model.takes === "table") this.table = text;
      else $("series-csv").value = text;
      this.origin = { file: file.name, question: this.key };
      await this.changed();
    });
  }
}
