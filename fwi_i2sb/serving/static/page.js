// The form, the requests, and what is shown of an answer.
import {part, readNpy, readNpz} from "./arrays.js";
import {Heatmap} from "./figure.js";

const BYTES = "application/octet-stream";
const $ = id => document.getElementById(id);
const figures = Object.fromEntries(
  ["truth", "map", "std", "observed", "again", "rest"].map(name => [name, new Heatmap($(name))]));
let about, running, shown;

class Refused extends Error {}

// the answer of a route; what the service refuses is thrown with its own sentence
async function call(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(said.detail ?? `The service answers with status ${answer.status}.`);
}

const withKey = more => ({...more, headers: {"X-API-Key": $("key").value, ...more.headers}});
const json = async (path, options) => (await call(path, options)).json();
const route = name => `api/v1/models/${encodeURIComponent(name)}`;
const described = (name, signal) => json(route(name), {signal});
const size = bytes => `${short(bytes / 1e6)} MB`;
const short = value => String(+value.toPrecision(3));

function fail(error) {
  if (error.name === "AbortError") { $("status").textContent = "Stopped."; return; }
  if (!(error instanceof Refused)) console.error(error);
  $("error").textContent = error instanceof Refused ? error.message : "The answer cannot be read by this page.";
  $("error").hidden = false;
  $("status").textContent = "";
}

// --- the form

async function begin() {
  about = await json("static/page.json");
  const {models} = await json("api/v1/models");
  $("number").max = about.examples - 1;
  $("model").replaceChildren(...models.map(name => new Option(name)));
  if (!models.length) throw new Refused("The service has no model.");
  await choose();
}

async function choose() {
  $("model-hint").textContent = "";
  const name = $("model").value, model = await described(name);
  if (name !== $("model").value) return;
  const {survey, dx, kind, velocity_range: range} = model.model_configuration;
  const [shots, samples, receivers] = model.input_shape, [depth, width] = model.output_shape;
  $("model-hint").textContent = `A ${kind} for ${shots} shots × ${samples} samples of ${short(1e3 * survey.dt)} ms × `
    + `${receivers} receivers; maps of ${depth} × ${width} cells of ${short(dx)} m, ${range.low} to ${range.high} m/s.`;
}

const source = () => document.querySelector("input[name=source]:checked").value;

// the bytes of a record, and of an example the true map
async function chosen(name, signal) {
  if (source() === "example") {
    const number = $("number").value, asked = part => call(`${route(name)}/example?number=${number}&part=${part}`,
      withKey({signal})).then(answer => answer.arrayBuffer());
    return {bytes: await asked("record"), truth: readNpy(await asked("map"))};
  }
  const file = $("file").files[0];
  if (!file) throw new Refused("Choose a file first.");
  if (file.size > about.max_body_bytes)
    throw new Refused(`The file has ${size(file.size)}, and the service reads ${size(about.max_body_bytes)} at most.`);
  return {bytes: await file.arrayBuffer(), truth: null};
}

function settings() {
  const asked = new URLSearchParams({resimulate: true});
  for (const name of ["seed", "samples", "nfe", "refine", "start"]) if ($(name).value) asked.set(name, $(name).value);
  return asked;
}

const post = (path, asked, body, signal) => call(`${path}?${asked}`, withKey({method: "POST", body, signal,
  headers: {"Content-Type": BYTES}}));

const prediction = (name, asked, bytes, signal) =>
  post(`api/v1/predict/${encodeURIComponent(name)}`, asked, bytes, signal);

// steps of waveform inversion take long
const isLong = (model, asked) => {
  if (asked.has("refine")) return Number(asked.get("refine")) > 0;
  const own = model.model_configuration;
  return [own, ...own.members ?? []].some(({settings = {}}) => settings.refine > 0 || settings.refine_mean > 0);
};

// the answer of a job, whose progress is shown, and which ends when it is given up
async function job(name, asked, bytes, signal) {
  asked.set("model", name);
  let state = await (await post("jobs", asked, bytes, signal)).json();
  signal.addEventListener("abort", () => fetch(`jobs/${state.id}`, withKey({method: "DELETE"})).catch(() => {}));
  while (["queued", "running"].includes(state.state)) {
    [$("progress").hidden, $("progress").value] = [false, state.progress];
    await new Promise(resolve => setTimeout(resolve, 500));
    state = await (await call(`jobs/${state.id}`, withKey({signal}))).json();
  }
  return call(`jobs/${state.id}/result`, withKey({signal}));
}

async function invert(event) {
  event.preventDefault();
  running?.abort();
  const mine = running = new AbortController(), began = Date.now();
  $("error").hidden = true;
  busy(true);
  const clock = setInterval(() => {
    $("status").textContent = `Working… ${Math.round((Date.now() - began) / 1000)} s`;
  }, 500);
  try {
    // all of the form at once: it may be changed while the service works
    const name = $("model").value, asked = settings();
    const [model, {bytes, truth}] = await Promise.all([described(name, mine.signal), chosen(name, mine.signal)]);
    const answer = await (isLong(model, asked) ? job : prediction)(name, asked, bytes, mine.signal);
    show(model, await answer.arrayBuffer(), truth);
    $("status").textContent = `Done in ${short((Date.now() - began) / 1000)} s.`;
  } catch (error) { if (running === mine) fail(error); } finally {
    clearInterval(clock);
    if (running === mine) busy(false);
  }
}

function busy(on) {
  [$("go").disabled, $("stop").hidden] = [on, !on];
  if (on) $("status").textContent = "Working…";
  $("progress").hidden = true;
}

// --- the answer

function show(model, buffer, truth) {
  const answer = readNpz(buffer), batched = answer.map.shape.length === 3;
  const provenance = JSON.parse(answer.provenance.values), reasons = JSON.parse(answer.trust_reasons.values);
  shown = {answer, batched, truth, provenance, reasons, model, colours: about.colours};
  $("record").max = batched ? answer.map.shape[0] - 1 : 0;
  $("record").value = 0;
  $("which").hidden = !batched;
  $("shot").max = model.input_shape[0] - 1;
  $("shot").value = Math.floor(model.input_shape[0] / 2);
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([buffer], {type: BYTES}));
  $("result").hidden = false;
  items($("warnings"), provenance.warnings);
  describe(provenance);
  draw();
  $("result").scrollIntoView({block: "nearest", behavior: "smooth"});
}

function items(list, sentences) {
  list.replaceChildren(...sentences.map(sentence => Object.assign(document.createElement("li"), {textContent: sentence})));
}

function describe(provenance) {
  const {seed, samples, nfe, passes, refine, refine_mean: mean, start, seconds_per_record: seconds, wave_solves, device,
    version} = provenance;
  const rows = {model: shown.model.model_name, "checkpoint step": provenance.step, "starting model": start, seed, samples,
    "network calls per sample": nfe, passes, "steps of waveform inversion of the mean": mean,
    "of each sample": refine, "wave solves per record": wave_solves,
    "seconds per record": short(seconds), device, version};
  $("about").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [["dt", name], ["dd", value ?? "-"]]
    .map(([kind, words]) => Object.assign(document.createElement(kind), {textContent: words}))));
}

const one = (name, k) => shown.answer[name] && (shown.batched ? part(shown.answer[name], k) : shown.answer[name]);
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;

function draw() {
  if (!shown) return;
  const k = Math.min(Number($("record").max), Math.max(0, Math.floor(Number($("record").value)) || 0));
  verdict(shown.batched ? shown.reasons[k] : shown.reasons);
  maps(k);
  gathers(k);
}

function verdict(reasons) {
  const doubtful = reasons.length > 0, judged = shown.provenance.signs !== undefined;
  $("verdict").className = `verdict ${doubtful ? "doubtful" : judged ? "" : "open"}`;
  $("trust").textContent = doubtful ? "✗ Not to be trusted. About this record:" : judged
    ? "✓ Trusted: record and map are like those that the model was calibrated on."
    : "? Not judged: there is no calibration for this map. Nothing odd was found in the record.";
  items($("reasons"), reasons);
}

function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

function maps(k) {
  const {velocity_range: scale, dx} = shown.model.model_configuration, {truth, colours} = shown;
  const map = one("map", k), std = one("std", k), [rows, columns] = map.shape;
  const axis = (label, n) => ({label, unit: "m", from: -dx / 2, to: (n - .5) * dx});
  const panel = (title, array, more) => ({title, values: array.values, shape: array.shape, square: true, unit: "m/s",
    x: axis("x", columns), y: axis("depth", rows), note: `${range(array.values).map(Math.round).join(" to ")} m/s`, ...more});
  const velocity = {limits: [scale.low, scale.high], bar: "velocity", colours: colours.batlow};
  const error = truth && mean(truth.values.map((value, cell) => Math.abs(value - map.values[cell])));
  figures.truth.show(truth && panel("True map of the example", truth, velocity));
  const found = panel("Velocity map", map, velocity);
  if (truth) found.note = `mean absolute error ${Math.round(error)} m/s`;
  figures.map.show(found);
  figures.std.show(panel("Standard deviation", std, {limits: [0, Math.max(1, range(std.values)[1])], unit: "m/s",
    bar: "standard deviation", colours: colours.lajolla, note: shown.provenance.samples > 1 || shown.provenance.calibrated
      ? `on average ${short(mean(std.values))} m/s` : "one sample has none"}));
}

// the size that a share of the samples of a gather does not exceed
function clip(values, share = .98) {
  const sorted = Float32Array.from(values, Math.abs).sort();
  return Math.max(sorted[Math.floor(share * (sorted.length - 1))], 1e-12);
}

const norm = values => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

function gathers(k) {
  const {survey} = shown.model.model_configuration, shot = Number($("shot").value);
  const [record, again] = [one("record", k), one("resimulated", k)];
  const rest = record.values.map((value, sample) => value - again.values[sample]);
  $("misfit").textContent = "The waves were simulated again in the velocity map; what differs is "
    + `${short(norm(rest) / norm(record.values) || 0)} of the record (relative misfit over all shots).`;
  $("shot-place").textContent = `${shot + 1} of ${survey.sources.length}, at x = ${short(survey.sources[shot][0])} m`;
  const observed = part(record, shot), limit = clip(observed.values), [rows, columns] = observed.shape;
  const step = survey.dt * Math.max(1, Math.round(survey.nt / rows)), places = survey.receivers.map(([x]) => x);
  const half = columns > 1 ? (places[columns - 1] - places[0]) / (columns - 1) / 2 : .5;
  const same = {shape: [rows, columns], limits: [-limit, limit], bar: "pressure", unit: "pressure units",
    colours: shown.colours.gray, x: {label: "receiver x", unit: "m", from: places[0] - half, to: places[columns - 1] + half},
    y: {label: "time", unit: "s", from: 0, to: rows * step}};
  const panel = (title, values) => ({...same, title, values, note: `largest ${short(range(values.map(Math.abs))[1])} pressure units`});
  figures.observed.show(panel("Record", observed.values));
  figures.again.show(panel("Simulated in the map", part(again, shot).values));
  figures.rest.show(panel("Difference", part({shape: record.shape, values: rest}, shot).values));
}

$("ask").addEventListener("submit", invert);
$("stop").addEventListener("click", () => running?.abort());
$("model").addEventListener("change", () => choose().catch(fail));
$("file").addEventListener("change", () => { document.querySelector("[value=file]").checked = true; });
for (const name of ["record", "shot"]) $(name).addEventListener("input", draw);
begin().catch(fail);
