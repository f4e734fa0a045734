// A map or a gather on a canvas: cells in colour, axes with units, a colour bar, and a cursor that reads values.

const LEFT = 62, RIGHT = 86, TOP = 8, BELOW = 44, BAR = 14, MOST = 430, LEAST = 110;

// round numbers from low to high, about `count` of them
function ticks(low, high, count) {
  const raw = (high - low) / count, base = 10 ** Math.floor(Math.log10(raw));
  const step = base * [1, 2, 5, 10].find(factor => factor * base >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

const short = value => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
  ? value.toExponential(0) : String(+value.toPrecision(4));

export class Heatmap {
  constructor(figure) {
    [this.canvas, this.output] = [figure.querySelector("canvas"), figure.querySelector("output")];
    this.caption = figure.querySelector("figcaption");
    this.figure = figure;
    new ResizeObserver(() => this.draw()).observe(figure);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", event => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.mark(null));
    this.canvas.addEventListener("blur", () => this.mark(null));
    this.canvas.addEventListener("keydown", event => this.key(event));
  }

  // panel: title, note, values, shape [rows, columns], x and y: {label, unit, from, to}, limits, bar, unit, colours,
  // square: whether both axes have one scale
  show(panel) {
    this.panel = panel;
    this.cursor = null;
    this.figure.hidden = !panel;
    if (!panel) return;
    const title = document.createElement("strong"), note = document.createElement("span");
    [title.textContent, note.textContent] = [panel.title, panel.note];
    this.caption.replaceChildren(title, note);
    this.canvas.setAttribute("aria-label", `${panel.title}: ${panel.note}. Arrow keys read single values.`);
    this.image = this.coloured();
    this.draw();
  }

  coloured() {
    const {values, shape: [rows, columns], limits: [low, high], colours} = this.panel;
    const image = new ImageData(columns, rows), last = colours.length - 1;
    for (let k = 0; k < values.length; k++) {
      const place = Math.round(last * (values[k] - low) / (high - low));
      const [r, g, b] = colours[Math.min(last, Math.max(0, place))];
      image.data.set([r, g, b, 255], 4 * k);
    }
    const canvas = new OffscreenCanvas(columns, rows);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  place() { // of the cells on the canvas
    const {shape: [rows, columns], square} = this.panel;
    let width = Math.max(60, this.figure.clientWidth - LEFT - RIGHT), height = 260;
    if (square) {
      height = width * rows / columns;
      if (height > MOST) [width, height] = [Math.max(60, MOST * columns / rows), MOST];
      height = Math.max(LEAST, height);
    }
    return {width, height};
  }

  draw() {
    if (!this.panel || !this.figure.clientWidth) return;
    const ratio = devicePixelRatio || 1, {width, height} = this.size = this.place();
    const whole = [width + LEFT + RIGHT, height + TOP + BELOW], pen = this.pen = this.canvas.getContext("2d");
    [this.canvas.width, this.canvas.height] = whole.map(side => Math.round(side * ratio));
    [this.canvas.style.width, this.canvas.style.height] = whole.map(side => `${side}px`);
    pen.scale(ratio, ratio);
    pen.translate(LEFT, TOP);
    pen.fillStyle = pen.strokeStyle = getComputedStyle(this.canvas).color;
    pen.font = "12px system-ui, 'Liberation Sans', sans-serif";
    pen.imageSmoothingEnabled = this.image.height > height * ratio || this.image.width > width * ratio;
    pen.drawImage(this.image, 0, 0, width, height);
    pen.strokeRect(0, 0, width, height);
    this.axes();
    this.bar();
    if (this.cursor) this.cross();
  }

  axes() {
    const {pen, size: {width, height}, panel: {x, y}} = this;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const value of ticks(x.from, x.to, width / 70)) {
      const at = width * (value - x.from) / (x.to - x.from);
      pen.fillRect(at - .5, height, 1, 5);
      pen.fillText(short(value), at, height + 8);
    }
    pen.fillText(`${x.label} (${x.unit})`, width / 2, height + 26);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of ticks(y.from, y.to, height / 50)) {
      const at = height * (value - y.from) / (y.to - y.from);
      pen.fillRect(-5, at - .5, 5, 1);
      pen.fillText(short(value), -8, at);
    }
    this.sideways(`${y.label} (${y.unit})`, -50, height / 2);
  }

  sideways(words, x, y) {
    const {pen} = this;
    pen.save();
    pen.translate(x, y);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(words, 0, 0);
    pen.restore();
  }

  bar() {
    const {pen, size: {width, height}, panel: {limits: [low, high], colours, bar, unit}} = this, left = width + 10;
    const ink = pen.fillStyle;
    colours.forEach(([r, g, b], k) => {
      pen.fillStyle = `rgb(${r} ${g} ${b})`;
      const from = height * (1 - (k + 1) / colours.length);
      pen.fillRect(left, from, BAR, height / colours.length + .5);
    });
    pen.fillStyle = ink;
    pen.strokeRect(left, 0, BAR, height);
    pen.textAlign = "left";
    for (const value of ticks(low, high, height / 50)) {
      const at = height * (high - value) / (high - low);
      pen.fillRect(left + BAR, at - .5, 4, 1);
      pen.fillText(short(value), left + BAR + 7, at);
    }
    this.sideways(`${bar} (${unit})`, width + RIGHT - 8, height / 2);
  }

  cross() {
    const {pen, size: {width, height}, panel: {shape: [rows, columns]}, cursor: [row, column]} = this;
    pen.save();
    for (const [colour, thick] of [["#fff", 3], ["#000", 1]]) {
      [pen.strokeStyle, pen.lineWidth] = [colour, thick];
      pen.strokeRect(width * column / columns - 1, height * row / rows - 1, width / columns + 2, height / rows + 2);
    }
    pen.restore();
  }

  point(event) {
    if (!this.panel) return;
    const {size: {width, height}, panel: {shape: [rows, columns]}} = this;
    const row = Math.floor(rows * (event.offsetY - TOP) / height);
    const column = Math.floor(columns * (event.offsetX - LEFT) / width);
    this.mark(row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null);
  }

  key(event) {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step || !this.panel) return;
    event.preventDefault();
    const {shape} = this.panel, from = this.cursor ?? shape.map(n => Math.floor(n / 2) - 1);
    this.mark(from.map((at, axis) => Math.min(shape[axis] - 1, Math.max(0, at + step[axis]))));
  }

  mark(cursor) {
    if (!this.panel || String(cursor) === String(this.cursor)) return;
    this.cursor = cursor;
    this.draw();
    if (!cursor) { this.output.value = ""; return; }
    const [row, column] = cursor, {shape: [rows, columns], values, x, y, unit} = this.panel;
    const at = (axis, k, n) => short(axis.from + (axis.to - axis.from) * (k + .5) / n);
    this.output.value = `${x.label} ${at(x, column, columns)} ${x.unit}, ${y.label} ${at(y, row, rows)} ${y.unit}: `
      + `${short(values[row * columns + column])} ${unit}`;
  }
}
