// The page: what is chosen, what is sent, what came back.

import { ApiError, isImage, listScorers, requestsOf, score } from "./api.js";
import * as clauses from "./clauses.js";
import { byId, h, number } from "./dom.js";
import { example } from "./examples.js";
import { clearPicked, show } from "./results.js";

const POLL_MS = 3000;
const MAX_HISTORY = 50;

const state = { key: "", images: [], references: [], scorers: [], history: [], abort: null, pasted: 0 };
const urls = new WeakMap();
const NEEDS = { "spec.geneval": "GenEval row", "spec.ocr": "text to read", "spec.metadata": "metadata" };

function urlOf(file) {
  if (!urls.has(file)) urls.set(file, URL.createObjectURL(file));
  return urls.get(file);
}

// --- images --------------------------------------------------------------------------------------

function add(files, kind = "images") {
  const known = [...files].filter(isImage);
  const refused = [...files].filter((file) => !isImage(file));
  state[kind].push(...known);
  say(refused.length ? `${refused.map((file) => file.name || file.type).join(", ")}: not a PNG, JPEG or WebP image` : "", refused.length > 0);
  drawThumbs();
}

function drawThumbs() {
  for (const [kind, id] of [["images", "thumbs"], ["references", "reference-thumbs"]]) {
    byId(id).replaceChildren(...state[kind].map((file, index) => h("li", {},
      h("img", { src: urlOf(file), alt: file.name, title: file.name }),
      h("button", { type: "button", class: "remove", "aria-label": `Remove ${file.name}`, onclick: () => {
        state[kind].splice(index, 1);
        drawThumbs();
        (byId(id).querySelectorAll("button")[index] ?? byId("choose")).focus();
      } }, "✕"))));
  }
  byId("video-label").hidden = state.images.length < 2;
  byId("examples").hidden = state.images.length > 0;
}

function pasted(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  // Browsers call all of them image.png.
  add(files.map((file) => {
    state.pasted += 1;
    return new File([file], `pasted-${state.pasted}.${file.type.split("/")[1]}`, { type: file.type });
  }));
}

// --- scorers -------------------------------------------------------------------------------------

const chosen = () => state.scorers.filter((scorer) => scorer.chosen);

async function refreshScorers() {
  let found;
  try {
    found = await listScorers(state.key);
  } catch (error) {
    if (error.code === "UNAUTHENTICATED") askForKey(state.key ? error.message : "This server asks for an API key.");
    banner(error.code === "UNAUTHENTICATED" ? "No scorers without a valid API key." : error.message);
    if (error.retryable) setTimeout(refreshScorers, POLL_MS);
    return;
  }
  banner("");
  const before = new Map(state.scorers.map((scorer) => [scorer.name, scorer]));
  state.scorers = found.map((scorer) => ({
    ...scorer,
    // At first what needs nothing but an image.
    chosen: before.get(scorer.name)?.chosen ?? scorer.inputs.every((input) => input === "image"),
    transform: before.get(scorer.name)?.transform ?? "",
  }));
  const focused = document.activeElement?.id;
  drawScorers();
  if (focused) byId(focused)?.focus();
  if (found.some((scorer) => scorer.state === "STARTING")) setTimeout(refreshScorers, POLL_MS);
}

function drawScorers() {
  byId("scorers").replaceChildren(...state.scorers.map((scorer) => {
    const box = h("input", { type: "checkbox", id: `scorer-${scorer.name}`, onchange: () => { scorer.chosen = box.checked; drawSections(); } });
    box.checked = scorer.chosen;
    const transform = h("select", { "aria-label": `Transform of ${scorer.name}`, onchange: () => { scorer.transform = transform.value; } },
      h("option", { value: "" }, scorer.default_transform),
      scorer.transforms.filter((name) => name !== scorer.default_transform).map((name) => h("option", { value: name }, name)));
    transform.value = scorer.transform;
    const ready = scorer.state === "READY";
    return h("li", { "data-state": scorer.state }, h("label", { class: "check" }, box, h("span", { class: "name" }, scorer.name)),
      h("span", { class: "needs" }, scorer.inputs.map((input) => NEEDS[input] ?? input).join(" + ")), transform,
      ready ? null : h("p", { class: "state" }, h("strong", {}, scorer.state), scorer.last_error ? ` ${scorer.last_error}` : ""));
  }));
  drawSections();
}

/** Shows the parts of the form that a chosen scorer needs. */
function drawSections() {
  const needed = new Set(chosen().flatMap((scorer) => scorer.inputs));
  for (const kind of ["geneval", "ocr", "metadata"]) byId(kind).hidden = !needed.has(`spec.${kind}`);
  byId("references").hidden = !needed.has("references");
}

// --- sending -------------------------------------------------------------------------------------

function form() {
  const inputs = new Set(chosen().flatMap((scorer) => scorer.inputs));
  const target = byId("target").value;
  return {
    images: [...state.images],
    isVideo: byId("video").checked && state.images.length > 1,
    prompt: byId("prompt").value,
    references: inputs.has("references") ? [...state.references] : [],
    scorers: chosen().map(({ name, transform, inputs: needs }) => ({ name, transform, inputs: needs })),
    specs: {
      geneval: inputs.has("spec.geneval") ? clauses.row() : null,
      ocr: inputs.has("spec.ocr") && target ? { target } : null,
      metadata: inputs.has("spec.metadata") ? metadata() : null,
    },
  };
}

function metadata() {
  const text = byId("metadata-json").value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ApiError("INVALID_ARGUMENT", `Metadata is not JSON: ${error.message}`);
  }
}

async function send() {
  if (state.abort) return;
  if (!state.images.length) return say("Choose an image first.", true);
  if (!chosen().length) return say("Choose a scorer first.", true);
  state.abort = new AbortController();
  busy(true);
  say("Scoring …");
  try {
    const asked = form();
    const requests = await requestsOf(asked);
    const answer = await score(requests, state.key, state.abort.signal);
    const run = runOf(asked, requests, answer);
    state.history.unshift(run);
    state.history.length = Math.min(state.history.length, MAX_HISTORY);
    say("");
    open(run);
  } catch (error) {
    failed(error);
  } finally {
    state.abort = null;
    busy(false);
  }
}

function runOf(asked, requests, answer) {
  const pictures = asked.images.map((file) => ({ url: urlOf(file), name: file.name }));
  const order = asked.scorers.map((scorer) => scorer.name);
  return {
    asked,
    at: new Date(),
    prompt: asked.prompt,
    sets: asked.isVideo ? [pictures] : pictures.map((one) => [one]),
    names: asked.isVideo ? [`video of ${pictures.length} frames`] : pictures.map((one) => one.name),
    results: answer.results.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name)),
    totalMs: answer.totalMs,
    ranges: rangesOf(asked.scorers),
    sent: { requests, isVideo: asked.isVideo, hasKey: Boolean(state.key),
      imageNames: asked.images.map((file) => file.name), referenceNames: asked.references.map((file) => file.name) },
  };
}

/** Where a score lies between fixed bounds; the server gives those of the default transform. */
function rangesOf(scorers) {
  const known = scorers.filter(({ transform }) => !transform)
    .map(({ name }) => state.scorers.find((scorer) => scorer.name === name))
    .map((scorer) => [scorer.name, [scorer.output_low, scorer.output_high]]);
  return Object.fromEntries(known.filter(([, bounds]) => bounds.every(Number.isFinite)));
}

function failed(error) {
  if (!(error instanceof ApiError)) throw error;
  const again = error.retryAfterS ? ` Try again in ${number(error.retryAfterS)} s.` : "";
  say(`${error.code}: ${error.message}${again}`, error.code !== "CANCELLED");
  if (error.code === "UNAUTHENTICATED") askForKey(error.message);
}

function busy(is) {
  byId("score").disabled = is;
  byId("cancel").hidden = !is;
  byId("results").setAttribute("aria-busy", String(is));
}

function say(text, isProblem = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("failed", isProblem);
}

function banner(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
}

// --- history -------------------------------------------------------------------------------------

function open(run) {
  show(run);
  byId("history-section").hidden = false;
  byId("history").replaceChildren(...state.history.map((entry) => h("li", {},
    h("button", { type: "button", "aria-current": entry === run ? "true" : null, onclick: () => { restore(entry); open(entry); } },
      h("img", { src: entry.sets[0][0].url, alt: "" }),
      h("span", {}, h("time", {}, entry.at.toLocaleTimeString()), " ", entry.prompt || entry.names[0]),
      h("small", {}, entry.results.map((result) => `${result.name} ${meanOf(result)}`).join(", "))))));
  const { top } = byId("results").getBoundingClientRect();
  if (top > innerHeight - 100) byId("results").scrollIntoView({ behavior: "smooth" });
}

function meanOf({ scores }) {
  const known = scores.filter((value) => value !== null);
  return known.length ? number(known.reduce((a, b) => a + b, 0) / known.length) : "–";
}

/** Fills the form as it was when this request was sent. */
function restore({ asked }) {
  state.images = [...asked.images];
  state.references = [...asked.references];
  byId("video").checked = asked.isVideo;
  byId("prompt").value = asked.prompt;
  byId("target").value = asked.specs.ocr?.target ?? "";
  byId("metadata-json").value = asked.specs.metadata ? JSON.stringify(asked.specs.metadata) : "";
  if (asked.specs.geneval) clauses.show(asked.specs.geneval);
  choose(asked.scorers);
  drawThumbs();
}

function choose(scorers) {
  for (const scorer of state.scorers) {
    const found = scorers.find(({ name }) => name === scorer.name);
    scorer.chosen = Boolean(found);
    scorer.transform = found?.transform ?? "";
  }
  drawScorers();
}

// --- key -----------------------------------------------------------------------------------------

function askForKey(why) {
  if (byId("key-dialog").open) return;
  byId("key-text").textContent = why;
  byId("key").value = "";
  byId("key-dialog").showModal();
}

// --- wiring --------------------------------------------------------------------------------------

function wire() {
  clauses.setUp();
  for (const [button, input, kind] of [["choose", "images", "images"], ["choose-references", "reference-images", "references"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", (event) => { add(event.target.files, kind); event.target.value = ""; });
  }
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", async () => {
      const found = await example(button.dataset.example);
      add([found.file]);
      byId("prompt").value = found.prompt;
      byId("target").value = "";
      if (found.row) clauses.show(found.row);
      choose(found.scorers.map((name) => ({ name, transform: "" })));
      await send();
    });
  }
  document.addEventListener("paste", pasted);
  document.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    add(event.dataTransfer.files, event.target.closest?.("#references") ? "references" : "images");
  });
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
  });
  byId("cancel").addEventListener("click", () => state.abort?.abort());
  byId("tray-clear").addEventListener("click", clearPicked);
  byId("key-button").addEventListener("click", () => askForKey("Sent with each request of this page and kept until you close or reload it."));
  byId("key-dialog").addEventListener("close", () => {
    if (byId("key-dialog").returnValue !== "use") return;
    state.key = byId("key").value.trim();
    byId("key").value = "";
    byId("key-button").textContent = state.key ? "API key: set" : "API key";
    refreshScorers();
  });
  drawThumbs();
  refreshScorers();
}

wire();
