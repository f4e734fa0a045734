// Arrays as numpy writes them: .npy files, and .npz archives, whose members are stored as they are.

const text = new TextDecoder("latin1");
const KINDS = {
  "<f4": Float32Array, "<f8": Float64Array, "<i4": Int32Array, "<i8": BigInt64Array, "|b1": Uint8Array, "|u1": Uint8Array,
};

function strings(bytes, length) { // numpy's texts: four bytes a character, filled up with zeros
  const view = new DataView(bytes);
  let found = "";
  for (let k = 0; k < length; k++) {
    const code = view.getUint32(4 * k, true);
    if (code) found += String.fromCodePoint(code);
  }
  return found;
}

// {shape, values} of a .npy; a text without axes is {shape: [], values: "..."}
export function readNpy(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 12 || text.decode(buffer.slice(1, 6)) !== "NUMPY") throw new Error("no .npy file");
  const [from, length] = view.getUint8(6) === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = text.decode(buffer.slice(from, from + length));
  const kind = /'descr':\s*'([^']+)'/.exec(header)[1];
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)[1].split(",").filter(part => part.trim()).map(Number);
  if (/'fortran_order':\s*True/.test(header)) throw new Error("an array with the first axis fastest");
  const content = buffer.slice(from + length);
  if (kind.startsWith("<U")) return {shape, values: strings(content, Number(kind.slice(2)))};
  if (!(kind in KINDS)) throw new Error(`an array of type ${kind}`);
  return {shape, values: new KINDS[kind](content)};
}

// the arrays of a .npz by name
export function readNpz(buffer) {
  const view = new DataView(buffer), found = {};
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("no .npz archive");
  let place = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left; left--) {
    const [method, size] = [view.getUint16(place + 10, true), view.getUint32(place + 24, true)];
    const [name, extra, comment] = [28, 30, 32].map(at => view.getUint16(place + at, true));
    const local = view.getUint32(place + 42, true);
    if (method) throw new Error("a packed archive");
    const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const called = text.decode(buffer.slice(place + 46, place + 46 + name)).replace(/\.npy$/, "");
    found[called] = readNpy(buffer.slice(from, from + size));
    place += 46 + name + extra + comment;
  }
  return found;
}

// one element along the first axis
export function part(array, k) {
  const size = array.values.length / array.shape[0];
  return {shape: array.shape.slice(1), values: array.values.slice(k * size, (k + 1) * size)};
}
