// What came back: a summary over all items, one card per item, and two of them side by side.

import { byId, copyButton, h, milliseconds, number } from "./dom.js";
import { marks, picture } from "./draw.js";
import { explanation, findingOf } from "./explain.js";
import { snippets } from "./snippets.js";

let picked = [];

/**
 * One answered request.
 * @param run {sets: [[{url, name}]], results, totalMs, ranges: {scorer: [low, high]}, sent, prompt}
 */
export function show(run) {
  const cards = run.sets.map((set, index) => card(run, set, index));
  const list = h("div", { class: "cards" }, cards);
  byId("results").replaceChildren(summary(run, list, cards), list, snippets(run.sent));
}

function summary(run, list, cards) {
  const rows = run.results.map((result) => {
    const known = result.scores.filter((score) => score !== null);
    const mean = known.length ? number(known.reduce((a, b) => a + b, 0) / known.length) : "–";
    const range = known.length > 1 ? `${number(Math.min(...known))} to ${number(Math.max(...known))}` : "";
    return h("tr", { "data-scorer": result.name }, h("th", { scope: "row" }, result.name), h("td", {}, mean), h("td", {}, range),
      h("td", { class: known.length < result.scores.length ? "failed" : "" }, result.scores.length - known.length),
      h("td", {}, milliseconds(result.queue_ms)), h("td", {}, milliseconds(result.compute_ms)),
      h("td", {}, h("code", { title: result.fingerprint }, `${result.version}·${result.fingerprint.slice(0, 8)}`),
        copyButton("Copy", () => result.fingerprint)));
  });
  const head = ["Scorer", "Mean", "Range", "Failed", "Queued", "Computed", "Version · fingerprint"];
  return h("section", { class: "summary" },
    h("h2", {}, `${run.sets.length} ${run.sets.length === 1 ? "item" : "items"} in ${milliseconds(run.totalMs)}`,
      run.prompt ? h("q", {}, run.prompt) : null),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Summary" },
      h("table", {}, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))),
    run.sets.length > 1 ? sorting(run, list, cards) : null);
}

function sorting(run, list, cards) {
  const select = h("select", { onchange: () => {
    const result = run.results.find((one) => one.name === select.value);
    const order = cards.map((_, index) => index);
    // What has no score stands last.
    if (result) order.sort((a, b) => (result.scores[b] ?? -Infinity) - (result.scores[a] ?? -Infinity));
    list.replaceChildren(...order.map((index) => cards[index]));
  } }, h("option", { value: "" }, "as chosen"), run.results.map((result) => h("option", { value: result.name }, `best ${result.name} first`)));
  return h("label", { class: "inline" }, "Order ", select);
}

function findings(run, index) {
  return run.results.map((result) => findingOf(result, index));
}

function pictures(set, found) {
  return h("div", { class: set.length > 1 ? "frames" : "" }, set.map(({ url, name }, frame) =>
    picture(url, name, found.flatMap((finding) => marks(finding.details, frame)))));
}

function card(run, set, index) {
  const found = findings(run, index);
  const name = run.names[index];
  const shown = pictures(set, found);
  const hasMarks = found.some((finding) => set.some((_, frame) => marks(finding.details, frame).length));
  const compare = h("button", { type: "button", class: "quiet pick", "aria-pressed": "false",
    onclick: () => pick({ run, set, index, name, button: compare }) }, "Compare");
  const toggle = hasMarks ? h("button", { type: "button", class: "quiet", "aria-pressed": "true", onclick: () => {
    const hidden = shown.classList.toggle("bare");
    toggle.setAttribute("aria-pressed", String(!hidden));
  } }, "Marks") : null;
  return h("article", { class: "card", "aria-label": name },
    h("header", {}, h("strong", { title: name }, name), toggle, compare),
    shown,
    h("div", { class: "findings" }, found.map((finding) => explanation(finding, run.ranges[finding.name])),
      found.some((finding) => finding.isLossy) ? h("p", { class: "hint" }, "Lossy file: its compression was scored, too.") : null));
}

// --- two side by side ----------------------------------------------------------------------------

function pick(item) {
  const again = picked.findIndex((other) => other.run === item.run && other.index === item.index);
  if (again >= 0) picked.splice(again, 1);
  else picked.push(item);
  item.button.setAttribute("aria-pressed", String(again < 0));
  if (picked.length === 2) compareTwo();
  else tray();
}

export function clearPicked() {
  picked.forEach(({ button }) => button.setAttribute("aria-pressed", "false"));
  picked = [];
  tray();
}

function tray() {
  byId("tray").hidden = !picked.length;
  if (picked.length) byId("tray-text").textContent = `Compare ${picked[0].name} with: choose another image, of this or an earlier request.`;
}

function compareTwo() {
  const sides = picked;
  const found = sides.map(({ run, index }) => findings(run, index));
  const close = () => dialog.close();
  const dialog = byId("compare");
  dialog.replaceChildren(
    h("header", {}, h("h2", {}, "Side by side"), h("button", { type: "button", class: "quiet", onclick: close }, "Close")),
    h("div", { class: "sides" }, sides.map((side, i) => h("figure", {}, pictures(side.set, found[i]),
      h("figcaption", {}, h("strong", {}, side.name), side.run.prompt ? h("q", {}, side.run.prompt) : null)))),
    h("table", {}, h("thead", {}, h("tr", {}, ["", sides[0].name, sides[1].name, "Change"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows(found).map(([name, a, b, isComponent]) => h("tr", { class: isComponent ? "component" : "" },
        h("th", { scope: "row" }, name), h("td", {}, shown(a)), h("td", {}, shown(b)), h("td", {}, difference(a, b)))))));
  dialog.addEventListener("close", clearPicked, { once: true });
  byId("tray").hidden = true;
  dialog.showModal();
}

const shown = (value) => (value === undefined ? "not scored" : value === null ? "no score" : number(value));
const difference = (a, b) => (typeof a === "number" && typeof b === "number" ? `${b > a ? "+" : ""}${number(b - a)}` : "");

function rows([first, second]) {
  const names = [...new Set([...first, ...second].map((finding) => finding.name))];
  return names.flatMap((name) => {
    const [a, b] = [first, second].map((list) => list.find((finding) => finding.name === name));
    const parts = [...new Set([...Object.keys(a?.components ?? {}), ...Object.keys(b?.components ?? {})])].sort();
    return [[name, a?.score, b?.score, false],
      ...parts.map((part) => [part, a?.components[part], b?.components[part], true])];
  });
}
