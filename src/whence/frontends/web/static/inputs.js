// The input of each kind of model: a drawing, a photo, a text, a row of a table, a time series.

import { base64 } from "./api.js";
import { $, made } from "./dom.js";
import { Drawing } from "./drawing.js";

const MAX_IMAGE = 8 * 2 ** 20, MAX_CSV = 500_000;
const KINDS = ["drawing", "picture", "text", "table", "series"];

export class Inputs {
  // `changed` is called after each change by the user, `failed` with errors
  constructor(changed, failed) {
    Object.assign(this, { changed, failed, picture: null, file: null, sample: null });
    this.drawing = new Drawing($("drawing"), () => { this.sample = null; $("draw-here").hidden = true; changed(); });
    this.listen();
  }

  show(model) {
    this.model = model;
    for (const kind of KINDS) $(`${kind}-input`).hidden = model.takes !== kind;
    this.sample = null;
    if (model.takes !== "picture" || !this.file) { // a photo of the user stays for the next model
      this.picture = this.file = null;
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
    if (input.picture) Object.assign(this, { picture: input.picture, file: null });
    if (input.text) $("text").value = input.text;
    if (input.table) this.table = input.table;
    if (input.row) $("row").value = input.row;
    if (input.series) $("series-csv").value = input.series;
    this.sample = sample;
    $("draw-here").hidden = true;
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
    const [first] = Object.values(this.question), rows = this.model.takes === "table" ? $("row").options.length : 1;
    return !first?.trim() || !rows;
  }

  set table(text) {
    $("csv").value = text;
    this.readRows();
  }

  // the rows of the table to choose from, and a field for each value of the chosen one
  readRows() {
    const count = Math.max(0, $("csv").value.trim().split("\n").length - 1), before = Math.min(+$("row").value, count - 1);
    $("row").replaceChildren(...Array.from({ length: count }, (_, i) => made("option", { value: i }, `row ${i + 1} of ${count}`)));
    $("row").value = Math.max(0, before);
    this.showFields();
  }

  showFields() {
    const lines = $("csv").value.trim().split("\n"), row = +$("row").value + 1, quoted = lines.some(line => line.includes('"'));
    const separator = [",", ";", "\t"].reduce((a, b) => lines[0].split(b).length > lines[0].split(a).length ? b : a);
    $("fields").hidden = quoted || lines.length < 2;
    if ($("fields").hidden) return;
    const names = lines[0].split(separator), values = lines[row].split(separator);
    $("fields").replaceChildren(...names.map((name, i) => {
      const input = made("input", { type: "text", value: values[i] ?? "", inputMode: "decimal" });
      input.addEventListener("change", () => {
        values[i] = input.value.replaceAll(separator, "").trim();
        lines[row] = values.join(separator);
        $("csv").value = lines.join("\n");
        this.edited();
      });
      return made("label", {}, name.trim(), input);
    }));
  }

  edited() {
    this.sample = this.file = null;
    this.changed();
  }

  listen() {
    const submitted = (id, work) => $(id).addEventListener("submit", event => { event.preventDefault(); work(); });
    $("clear").addEventListener("click", () => { this.drawing.clear(); $("draw-here").hidden = false; this.edited(); });
    submitted("text-input", () => this.edited());
    submitted("table-input", () => this.edited());
    submitted("series-input", () => this.edited());
    $("row").addEventListener("change", () => { this.showFields(); if (this.sample !== null) this.sample = null; this.changed(); });
    $("csv").addEventListener("change", () => { this.readRows(); this.edited(); });
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
      this.sample = null;
      this.file = file.name;
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
      this.sample = null;
      this.file = file.name;
      await this.changed();
    });
  }
}
