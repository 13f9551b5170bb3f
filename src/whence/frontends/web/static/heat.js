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
export const ink = colour => {
  const [red, green, blue] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "black" : "white"; // by WCAG's relative luminance
};

// the names of the two colours; none of a palette that shows magnitudes
export const names = () => ({ seismic: ["Red", "Blue"], safe: ["Orange", "Purple"], grey: null })[palette];

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

// A colour bar with its scale, and what each end means. Where the sign is not shown, by the palette or the method, it has one side.
export function legend(place, limit, name, { unsigned = false, ticks = true } = {}) {
  const key = JSON.stringify([palette, limit.toPrecision(2), name, unsigned, ticks]);
  place.hidden = false;
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const oneSided = unsigned || !names(), what = name.length > LONGEST_NAME ? "it" : name, bar = element("", "bar");
  const stops = Array.from({ length: 11 }, (_, i) => css(colour(oneSided ? i / 10 : i / 5 - 1)));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const number = value => Number(value.toPrecision(2)).toString().replace("-", "−");
  const scale = element("", "ticks");
  scale.append(...(oneSided ? [element("0"), element(number(limit))] : [element(number(-limit)), element("0"), element(`+${number(limit)}`)]));
  place.replaceChildren(element(oneSided ? "little" : `against ${what}`), bar, element(oneSided ? "much, for or against" : `for ${what}`), ...(ticks ? [scale] : []));
  place.title = name;
}

const element = (words, kind = "") => Object.assign(document.createElement("span"), { textContent: words, className: kind });
