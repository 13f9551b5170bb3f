// Colours of relevance: white for zero, with the same scale for both signs.

const PALETTES = {
  seismic: { positive: [[255, 0, 0], [128, 0, 0]], negative: [[0, 0, 255], [0, 0, 76]] },
  safe: { positive: [[230, 97, 1], [127, 59, 8]], negative: [[94, 60, 153], [45, 0, 75]] },
  grey: { positive: [[90, 90, 90], [0, 0, 0]], negative: [[90, 90, 90], [0, 0, 0]] },
};
const LONGEST_NAME = 20; // in the legend
let palette = "seismic";

// a select of palettes, stored across pages
export function chooser(select, changed) {
  const choose = name => { palette = name in PALETTES ? name : "seismic"; };
  choose(localStorage.getItem("palette"));
  select.value = palette;
  select.addEventListener("change", () => {
    choose(select.value);
    localStorage.setItem("palette", palette);
    changed();
  });
}

export const largest = values => values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-30);

export function colour(share) {
  const [middle, end] = PALETTES[palette][share < 0 ? "negative" : "positive"], strength = Math.min(1, Math.abs(share));
  const mix = (from, to, t) => from.map((c, i) => Math.round(c + (to[i] - c) * t));
  return strength < 0.5 ? mix([255, 255, 255], middle, 2 * strength) : mix(middle, end, 2 * strength - 1);
}

export const css = colour => `rgb(${colour.join(" ")})`;

// a text colour that is readable on a background
export const ink = ([red, green, blue]) => 0.3 * red + 0.6 * green + 0.1 * blue > 140 ? "black" : "white";

// draw a map [H, W] onto a canvas, translucent over an image if there is one
export function paint(canvas, { shape, values }, limit = largest(values), under = null) {
  const [height, width] = shape.length > 1 ? shape.slice(-2) : [1, shape[0]];
  const pixels = new ImageData(width, height);
  values.forEach((r, i) => {
    const share = r / limit;
    pixels.data.set([...colour(share), under ? Math.round(255 * Math.min(0.85, 0.15 + Math.abs(share))) : 255], 4 * i);
  });
  const small = Object.assign(document.createElement("canvas"), { width, height });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const side = under ? 448 : Math.max(width, height) < 64 ? 280 : Math.max(width, height);
  Object.assign(canvas, { width: side, height: Math.max(1, Math.round(side * height / width)) });
  canvas.style.aspectRatio = `${width} / ${height}`;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  if (under) {
    pen.filter = "grayscale(1)";
    pen.drawImage(under, 0, 0, canvas.width, canvas.height);
    pen.filter = "none";
  }
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// a colour bar with its scale, and what each end means
export function legend(place, limit, name) {
  const stops = Array.from({ length: 11 }, (_, i) => css(colour(i / 5 - 1))), bar = document.createElement("span");
  bar.className = "bar";
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const text = (words, kind = "") => Object.assign(document.createElement("span"), { textContent: words, className: kind });
  const ticks = text("", "ticks"), number = value => Number(value.toPrecision(2)).toString().replace("-", "−");
  ticks.append(text(number(-limit)), text("0"), text(`+${number(limit)}`));
  const what = name.length > LONGEST_NAME ? "it" : name;
  place.replaceChildren(text(`against ${what}`), bar, text(`for ${what}`), ticks);
  place.hidden = false;
}
