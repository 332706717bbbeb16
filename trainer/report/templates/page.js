"use strict";
// Hover over curves, the slider over epochs, groups by epoch, the large picture, the table of contents,
// and a page that loads itself again where it was. Everything is readable without it.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, text, space) {
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function hover(svg) {
  const chart = JSON.parse(svg.dataset.chart);
  const [left, right, top, bottom] = chart.frame;
  const [xLow, xHigh, yLow, yHigh] = chart.scale;
  const toX = (x) => left + ((x - xLow) / (xHigh - xLow)) * (right - left);
  const toY = (y) => bottom - ((y - yLow) / ((yHigh - yLow) || 1)) * (bottom - top);
  const stops = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const layer = element("g", {}, undefined, SVG);
  const tip = element("div", { class: "tip", hidden: "" });
  svg.append(layer);
  svg.parentElement.append(tip);
  let at = -1;

  function show(index) {
    at = Math.max(0, Math.min(stops.length - 1, index));
    const x = stops[at];
    layer.replaceChildren(element("line", { class: "cursor", x1: toX(x), x2: toX(x), y1: top, y2: bottom }, undefined, SVG));
    const rows = [element("div", {}, `${chart.x} ${short(x)}`)];
    for (const line of chart.lines) {
      const place = line.x.indexOf(x);
      const y = place < 0 ? null : line.y[place];
      if (y === null || y === undefined) continue;
      layer.append(element("circle", { class: "dot", cx: toX(x), cy: toY(y), r: 4, fill: `var(--s${line.color})` }, undefined, SVG));
      const row = element("div", {});
      row.append(element("i", { style: `background:var(--s${line.color})` }), `${line.name} ${short(y)}${chart.unit}`);
      if (line.low.length && line.low[place] !== null) row.append(element("span", {}, ` [${short(line.low[place])}, ${short(line.high[place])}]`));
      rows.push(row);
    }
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    const card = svg.parentElement.getBoundingClientRect();
    const px = box.left - card.left + (toX(x) / svg.viewBox.baseVal.width) * box.width;
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, px + 12 + width > card.width ? px - width - 12 : px + 12)}px`;
    tip.style.top = `${box.top - card.top + 16}px`;
  }
  function hide() {
    tip.hidden = true;
    layer.replaceChildren();
  }
  function move(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = 0;
    stops.forEach((stop, index) => { if (Math.abs(toX(stop) - x) < Math.abs(toX(stops[best]) - x)) best = index; });
    show(best);
  }
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(at < 0 ? stops.length - 1 : at + step);
  });
}

/** Show the pictures of one evaluation beside those of the base. */
function slide(control) {
  const range = control.querySelector("input");
  const output = control.querySelector("output");
  const heads = JSON.parse(control.dataset.heads);
  let timer = 0;
  function show() {
    for (const part of all("[data-slide]")) part.hidden = part.dataset.slide !== range.value;
    const [title, note] = heads[range.value];
    output.replaceChildren(`${title} `, element("small", {}, note));
    range.setAttribute("aria-valuetext", title);
  }
  const play = control.querySelector("button");
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }
  range.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Stop";
    if (range.value === range.max) range.value = range.min;
    show();
    timer = setInterval(() => {
      range.stepUp();
      show();
      if (range.value === range.max) stop();
    }, 700);
  });
  show();
}

function tabs(bar) {
  const choose = (chosen) => {
    for (const button of all("button", bar)) button.setAttribute("aria-pressed", String(button === chosen));
    for (const part of all("[data-record]")) part.hidden = part.dataset.record !== chosen.dataset.shows;
  };
  for (const button of all("button", bar)) button.addEventListener("click", () => choose(button));
}

function enlarge(dialog) {
  const body = dialog.querySelector("div");
  for (const button of all(".image")) {
    button.addEventListener("click", () => {
      const frame = button.querySelector(".frame").cloneNode(true);
      const words = element("div", {});
      for (const source of all(".source .frame", button.closest(".images"))) {
        words.append(element("h4", {}, "source"), source.cloneNode(true));
      }
      words.append(button.parentElement.querySelector("template").content.cloneNode(true));
      body.className = `wide${button.closest(".videos") ? " video" : ""}`;
      body.replaceChildren(frame, words);
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

function contents(nav) {
  const links = all("a", nav);
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
  const wide = matchMedia("(min-width: 1081px)");
  let before = null;
  function mark() {
    const passed = sections.filter((section) => section.getBoundingClientRect().top < innerHeight * 0.3);
    const bottom = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
    const current = links[bottom ? links.length - 1 : Math.max(0, passed.length - 1)];
    if (current === before) return;
    before?.removeAttribute("aria-current");
    current.setAttribute("aria-current", "true");
    before = current;
    if (!wide.matches) nav.scrollTo({ left: current.offsetLeft - nav.clientWidth / 3 });
  }
  addEventListener("scroll", mark, { passive: true });
  mark();
}

/** Load the page again every so often; scroll position, open parts and choices stay. */
function live(seconds) {
  const KEY = `report ${location.pathname}`;
  const choices = () => all("details, .tabs button, .control input");
  const keep = () => ({
    y: scrollY,
    states: choices().map((part) => (part.open ?? part.getAttribute("aria-pressed") ?? (part.value === part.max ? "last" : part.value))),
  });
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    if (kept) {
      choices().forEach((part, index) => {
        const state = kept.states[index];
        if (part.tagName === "DETAILS") part.open = state === true;
        else if (part.tagName === "BUTTON" && state === "true") part.click();
        else if (part.tagName === "INPUT" && state !== undefined && state !== "last") { part.value = state; part.dispatchEvent(new Event("input")); }
      });
      history.scrollRestoration = "manual";
      scrollTo(0, kept.y);
    }
  } catch { /* A page that may not store anything begins at its top. */ }
  let touched = 0;
  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  setInterval(() => {
    const busy = document.hidden || document.querySelector("dialog[open]") || Date.now() - touched < 2000;
    if (busy || window.getSelection()?.toString()) return;
    try { sessionStorage.setItem(KEY, JSON.stringify(keep())); } catch { /* See above. */ }
    location.reload();
  }, seconds * 1000);
}

all("svg[data-chart]").forEach(hover);
all(".control").forEach(slide);
all(".tabs").forEach(tabs);
all("dialog").forEach(enlarge);
all(".toc").forEach(contents);
// Drawings of few pixels are shown as they are.
for (const image of all("img")) image.decode().then(() => image.classList.toggle("pixels", image.naturalWidth < 128), () => {});
if (document.body.dataset.reload) live(Number(document.body.dataset.reload));
