// A canvas to draw digits, with strokes as wide as MNIST's, reduced to 28 × 28 for the network.

import { base64 } from "./api.js";

export class Drawing {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.last = null;
    canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); this.stroke(event); });
    canvas.addEventListener("pointermove", event => { if (event.buttons) this.stroke(event); });
    canvas.addEventListener("pointerup", () => { this.last = null; });
    this.clear();
  }

  clear() {
    this.pen.fillStyle = "black";
    this.pen.fillRect(0, 0, 280, 280);
  }

  stroke(event) {
    const box = this.canvas.getBoundingClientRect();
    const here = [(event.clientX - box.left) * 280 / box.width, (event.clientY - box.top) * 280 / box.height];
    Object.assign(this.pen, { strokeStyle: "white", lineWidth: 22, lineCap: "round" });
    this.pen.beginPath();
    this.pen.moveTo(...(this.last ?? here));
    this.pen.lineTo(here[0] + 0.01, here[1]); // a line of no length, as of a click, would not be drawn
    this.pen.stroke();
    this.last = here;
    this.changed();
  }

  get bytes() {
    // the mean of every 10 × 10 pixels, so that reading returns exactly the bytes that were set
    const { data } = this.pen.getImageData(0, 0, 280, 280), sums = new Float64Array(784);
    for (let i = 0; i < 280 * 280; i++) sums[28 * Math.floor(i / 2800) + Math.floor(i % 280 / 10)] += data[4 * i];
    return Uint8Array.from(sums, sum => Math.round(sum / 100));
  }

  set bytes(bytes) {
    const pixels = new ImageData(28, 28);
    bytes.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
    const small = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    small.getContext("2d").putImageData(pixels, 0, 0);
    this.pen.imageSmoothingEnabled = false;
    this.pen.drawImage(small, 0, 0, 280, 280);
  }

  get encoded() { return base64(this.bytes); }
}
