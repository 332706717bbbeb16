// One scorer's result for one item, as words: score, components, reasons, text, the judge's words.

import { h, number } from "./dom.js";
import { objectLabel } from "./draw.js";

/** The part of a result that is about one item: {name, score, raw, components, status, details}. */
export function findingOf(result, index) {
  const at = (column) => column?.[index] ?? null;
  return {
    name: result.name,
    score: at(result.scores),
    raw: at(result.raw),
    components: Object.fromEntries(
      Object.entries(result.components).map(([name, column]) => [name, at(column.values)])),
    status: result.status.find((entry) => entry.index === index) ?? null,
    details: result.details?.find((entry) => entry.index === index)?.details ?? {},
    isLossy: at(result.lossy_input) === true,
  };
}

/** @param range [low, high] of the score where both are finite, or null. */
export function explanation(finding, range) {
  const { name, score, status } = finding;
  if (status) {
    return h("section", { class: "finding failed-item", "data-scorer": name },
      h("h3", {}, h("span", {}, name), h("span", { class: "no-score" }, "no score")),
      h("p", { class: "failed" }, h("strong", {}, status.code), ` ${status.message}`),
      status.retryable ? h("p", { class: "hint" }, "Trying again may help.") : null);
  }
  return h("section", { class: "finding", "data-scorer": name },
    h("h3", {}, h("span", {}, name), h("output", { class: "value", title: String(score) }, number(score))),
    range ? h("meter", { min: range[0], max: range[1], value: score, "aria-label": `${name} from ${range[0]} to ${range[1]}` }) : null,
    componentList(finding),
    words(finding.details));
}

function componentList({ components, raw, score }) {
  const shown = Object.entries(components).sort(([a], [b]) => a.localeCompare(b));
  if (raw !== score) shown.unshift(["raw", raw]);
  if (!shown.length) return null;
  return h("dl", { class: "components" }, shown.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value === null ? "–" : number(value)))));
}

// Keys that have a rendering of their own; any other appears as name and value.
const KNOWN = new Set(["objects", "reasons", "strict_reasons", "tag", "target", "recognised", "lines",
  "frames", "text", "cut", "first_token"]);

function words(details) {
  const rest = Object.entries(details).filter(([key]) => !KNOWN.has(key));
  const uncertain = details.objects?.some((object) => object.counted === false);
  return [
    ...reasons(details),
    reading(details),
    judge(details),
    details.objects ? h("p", { class: "seen" }, details.objects.length
      ? ["Seen: ", details.objects.map(objectLabel).join(", "), "."] : "Saw no object.") : null,
    uncertain ? h("p", { class: "hint" }, "Grey: seen, but too uncertain to be counted.") : null,
    rest.length ? h("details", {}, h("summary", {}, "Details"),
      h("pre", {}, JSON.stringify(Object.fromEntries(rest), null, 1))) : null,
  ].flat();
}

function reasons({ reasons: official = [], strict_reasons: strict = [] }) {
  const line = (text, rule) => h("li", {}, text, rule ? h("small", {}, ` ${rule}`) : null);
  const found = [
    ...official.filter((text) => strict.includes(text)).map((text) => line(text)),
    ...official.filter((text) => !strict.includes(text)).map((text) => line(text, "official")),
    ...strict.filter((text) => !official.includes(text)).map((text) => line(text, "strict")),
  ];
  return found.length ? [h("ul", { class: "reasons", "aria-label": "Why not full marks" }, found)] : [];
}

function reading({ target, recognised, frames }) {
  if (target === undefined) return null;
  const read = frames ? frames.map((frame) => frame.recognised).join(" / ") : recognised;
  return h("p", { class: "reading" }, "Asked for ", h("q", {}, target), ", read ",
    read ? h("q", { class: read === target ? "" : "differs" }, read) : "nothing", ".");
}

function judge({ text, cut, first_token: first = [] }) {
  if (text === undefined) return null;
  const chances = first.map(([token, logProb]) => `${token.trim() || "␣"} ${(100 * Math.exp(logProb)).toFixed(1)} %`);
  return [
    h("blockquote", { class: "judge" }, text || "(no words)", cut ? h("small", {}, " … cut at the limit of tokens") : null),
    chances.length ? h("p", { class: "hint" }, `First token: ${chances.slice(0, 6).join(", ")}`) : null,
  ];
}
