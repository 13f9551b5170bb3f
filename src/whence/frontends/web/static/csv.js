// Comma-separated values, read and written as the server reads them (models/csv_inputs.py).

const SEPARATORS = [",", ";", "\t"];

// the rows of a text, its header first; `names` are the columns that the model knows
export function parse(text, names) {
  const plain = name => name.trim().toLowerCase(), known = new Set(names.map(plain));
  const fit = rows => rows.length ? new Set(rows[0].map(plain).filter(cell => known.has(cell))).size + rows[0].length / 1e4 : 0;
  return SEPARATORS.map(separator => split(text, separator)).reduce((a, b) => fit(b) > fit(a) ? b : a);
}

export const write = rows => rows.map(row => row.map(cell => /[",;\t\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell).join(",")).join("\n");

function split(text, separator) {
  const letters = text.replace(/^\ufeff/, "").replaceAll("\r\n", "\n").replaceAll("\r", "\n");
  const rows = [];
  let row = [], cell = "", quoted = false, begun = false;
  for (let i = 0; i < letters.length; i++) {
    const letter = letters[i];
    if (quoted) {
      if (letter !== '"') cell += letter;
      else if (letters[i + 1] === '"') { cell += '"'; i += 1; } else quoted = false;
    } else if (letter === '"' && !begun) quoted = begun = true;
    else if (letter === separator) { row.push(cell); cell = ""; begun = false; } else if (letter === "\n") {
      rows.push([...row, cell]);
      row = [];
      cell = "";
      begun = false;
    } else if (letter !== " " || begun) { cell += letter; begun = true; }
  }
  rows.push([...row, cell]);
  const empty = one => one.length === 1 && one[0] === "";
  while (rows.length && empty(rows.at(-1))) rows.pop();
  while (rows.length && empty(rows[0])) rows.shift();
  return rows.length && rows[0].length === 1 ? rows : rows.filter(one => !empty(one));
}
