// The form for GenEval: objects that the image must show, or must not.

import { byId, h } from "./dom.js";

const COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"];
const RELATIONS = ["left of", "right of", "above", "below"];
const TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"];

const options = (values, none) =>
  [h("option", { value: "" }, none), ...values.map((value) => h("option", { value }, value))];

export function setUp() {
  byId("tag").append(h("option", { value: "" }, "automatic"), ...TAGS.map((tag) => h("option", {}, tag)));
  byId("add-include").addEventListener("click", () => add("include").querySelector(".class").focus());
  byId("add-exclude").addEventListener("click", () => add("exclude").querySelector(".class").focus());
  byId("row").addEventListener("input", () => {
    const text = byId("row").value.trim();
    let problem = "";
    try { if (text) show(JSON.parse(text)); } catch (error) { problem = `Not a row: ${error.message}`; }
    byId("row-problem").textContent = problem;
  });
  add("include");
}

function add(kind, clause = {}) {
  const list = byId(kind);
  const field = (name, element) => { element.classList.add(name); return element; };
  const parts = [
    field("count", h("input", { type: "number", min: 1, max: 64, value: clause.count ?? 1, "aria-label": "Count" })),
  ];
  if (kind === "include") {
    parts.push(field("color", h("select", { "aria-label": "Colour" }, options(COLORS, "any colour"))));
  }
  parts.push(field("class", h("input", { type: "text", value: clause.class ?? "", placeholder: "object",
    "aria-label": "Object", autocapitalize: "off", spellcheck: false })));
  parts.push(h("button", { type: "button", class: "quiet remove", "aria-label": "Remove", onclick: () => { row.remove(); refresh(); } }, "✕"));
  if (kind === "include") {
    parts.push(field("relation", h("select", { "aria-label": "Position" }, options(RELATIONS, "anywhere"))),
      field("target", h("select", { "aria-label": "Relative to", hidden: true })));
  }
  const row = h("li", { class: "clause" }, kind === "exclude" ? h("span", {}, "not") : null, parts);
  list.append(row);
  if (clause.color) choose(row.querySelector(".color"), clause.color);
  const position = clause.position;
  if (position) {
    const [relation, target] = Array.isArray(position) ? position : [position.relation, position.target];
    row.querySelector(".relation").value = relation;
    row.dataset.target = target;
  }
  row.addEventListener("input", (event) => {
    if (event.target.classList.contains("target")) row.dataset.target = event.target.value;
    refresh();
  });
  refresh();
  return row;
}

/** A colour that is not in the list is added to it: detectors have palettes of their own. */
function choose(select, value) {
  if (![...select.options].some((option) => option.value === value)) select.append(h("option", { value }, value));
  select.value = value;
}

/** Each position may refer to an earlier object. */
function refresh() {
  const rows = [...byId("include").children];
  rows.forEach((row, index) => {
    const relation = row.querySelector(".relation");
    const target = row.querySelector(".target");
    relation.hidden = index === 0;
    if (index === 0) relation.value = "";
    target.hidden = !relation.value;
    target.replaceChildren(...rows.slice(0, index).map((other, i) =>
      h("option", { value: i }, `object ${i + 1}${other.querySelector(".class").value ? `: ${other.querySelector(".class").value}` : ""}`)));
    target.value = Math.min(Number(row.dataset.target ?? 0), index - 1);
  });
}

/** Fills the form from a row of GenEval's files. */
export function show(row) {
  if (!Array.isArray(row?.include)) throw new Error("it has no list `include`");
  byId("include").replaceChildren();
  byId("exclude").replaceChildren();
  row.include.forEach((clause) => add("include", clause));
  (row.exclude ?? []).forEach((clause) => add("exclude", clause));
  byId("tag").value = TAGS.includes(row.tag) ? row.tag : "";
  refresh();
}

/** The row that the form describes, or null where no object is named. */
export function row() {
  const include = read("include");
  if (!include.length) return null;
  const exclude = read("exclude");
  return { tag: byId("tag").value || category(include), include, ...(exclude.length ? { exclude } : {}) };
}

function read(kind) {
  return [...byId(kind).children].map((entry) => {
    const value = (name) => entry.querySelector(`.${name}`)?.value.trim() ?? "";
    return {
      class: value("class"),
      count: Number(value("count")) || 1,
      ...(value("color") ? { color: value("color") } : {}),
      // The proto's own form, which gRPC takes as well.
      ...(value("relation") ? { position: { relation: value("relation"), target: Number(value("target")) } } : {}),
    };
  }).filter((clause) => clause.class);
}

/** The benchmark's category of a row. */
function category(include) {
  if (include.some((clause) => clause.position)) return "position";
  if (include.length > 1) return include.some((clause) => clause.color) ? "color_attr" : "two_object";
  if (include[0].color) return "colors";
  return include[0].count > 1 ? "counting" : "single_object";
}
