// The same request for a terminal and for a program.

import { copyButton, h } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
// JSON's strings are Python's; its three words are not.
const python = (value) => {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value && typeof value === "object") {
    return `{${Object.entries(value).map(([key, entry]) => `${JSON.stringify(key)}: ${python(entry)}`).join(", ")}}`;
  }
  if (typeof value === "boolean") return value ? "True" : "False";
  return value === null ? "None" : JSON.stringify(value);
};

const baseUrl = () => location.origin + location.pathname.replace(/\/$/, "");
const kindOf = (item) => ["geneval", "ocr", "metadata"].find((kind) => item[kind]);

/** @param sent {requests, imageNames: [name], referenceNames: [name], isVideo, hasKey} */
export function snippets(sent) {
  const texts = {
    curl: sent.requests.map((request, i) => curl(request, sent, i)).join("\n"),
    Python: pythonProgram(sent),
    grpcurl: sent.requests.map((_, i) => grpcurl(sent, i)).join("\n"),
  };
  const shown = h("pre", { tabindex: 0, "aria-label": "Code" });
  let chosen = "curl";
  const tabs = Object.keys(texts).map((name) =>
    h("button", { type: "button", role: "tab", onclick: () => open(name) }, name));
  function open(name) {
    chosen = name;
    shown.textContent = texts[name];
    tabs.forEach((tab) => tab.setAttribute("aria-selected", tab.textContent === name));
  }
  open(chosen);
  return h("details", { class: "snippets" }, h("summary", {}, "This request as code"),
    h("div", { class: "tabs", role: "tablist" }, tabs, copyButton("Copy", () => texts[chosen]),
      sent.requests.map((request, i) => h("button", { type: "button", class: "quiet", onclick: () => save(request, fileName(sent, i)) }, `Save ${fileName(sent, i)}`))),
    shown,
    h("p", { class: "hint" }, "curl and Python read the images from the current folder; grpcurl reads the saved file and needs the gRPC address, 50051 unless the config says otherwise."));
}

const fileName = (sent, i) => (sent.requests.length > 1 ? `request-${i + 1}.json` : "request.json");

function save(request, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(request)], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function curl(request, sent, i) {
  const key = sent.hasKey ? [`-H "authorization: Bearer $REWARD_API_KEY"`] : [];
  const url = quoted(`${baseUrl()}/v1/score`);
  // A form has neither references nor transforms, and one image per item.
  const needsJson = sent.isVideo || sent.referenceNames.length || request.scorers.some((scorer) => scorer.transform);
  if (needsJson) {
    return ["curl", ...key, "-H 'content-type: application/json'", `--data-binary @${fileName(sent, i)}`, url].join(" \\\n  ");
  }
  const [item] = request.items;
  const kind = kindOf(item);
  const field = (name, value) => `--form-string ${quoted(`${name}=${value}`)}`;
  return ["curl", ...key,
    ...sent.imageNames.map((name) => `-F ${quoted(`images=@"${name.replace(/(["\\])/g, "\\$1")}"`)}`),
    field("scorers", request.scorers.map((scorer) => scorer.name).join(",")),
    ...(item.prompt ? [field("prompt", item.prompt)] : []),
    ...(kind ? [field("spec", JSON.stringify({ [kind]: item[kind] }))] : []),
    field("include_details", "true"), url].join(" \\\n  ");
}

function pythonProgram(sent) {
  const selects = sent.requests.some((request) => request.scorers.some((scorer) => scorer.transform));
  const images = (names) => `(${names.map((name) => `Image.from_file(${JSON.stringify(name)}),`).join(" ")})`;
  const key = sent.hasKey ? `, api_key=os.environ["REWARD_API_KEY"]` : "";
  const lines = [
    ...(sent.hasKey ? ["import os", ""] : []),
    `from reward_client import Image, Item, RewardClient${selects ? ", ScorerSelector" : ""}`,
    "",
    `with RewardClient(${JSON.stringify(baseUrl())}${key}) as client:`,
  ];
  for (const { items, scorers } of sent.requests) {
    lines.push("    items = [");
    items.forEach((item, i) => {
      const names = sent.isVideo ? sent.imageNames : [sent.imageNames[i]];
      const shared = sent.isVideo || sent.referenceNames.length === 1 || items.length === 1;
      const compared = sent.referenceNames.length ? `, ${images(shared ? sent.referenceNames : [sent.referenceNames[i]])}` : "";
      const kind = kindOf(item);
      const spec = kind ? `, spec=${python(item[kind])}, spec_kind=${JSON.stringify(kind)}` : "";
      lines.push(`        Item(${JSON.stringify(item.id)}, ${JSON.stringify(item.prompt ?? "")}, ${images(names)}${compared}${spec}),`);
    });
    const chosen = scorers.map(({ name, transform }) =>
      (transform ? `ScorerSelector(${JSON.stringify(name)}, transform=${JSON.stringify(transform)})` : JSON.stringify(name)));
    lines.push("    ]",
      `    for result in client.score(items, [${chosen.join(", ")}], include_details=True).results.values():`,
      "        print(result.name, result.scores, result.errors or \"\")");
  }
  return lines.join("\n");
}

function grpcurl(sent, i) {
  const isTls = location.protocol === "https:";
  const key = sent.hasKey ? [`-H "authorization: Bearer $REWARD_API_KEY"`] : [];
  return ["grpcurl", ...(isTls ? [] : ["-plaintext"]), ...key, "-max-msg-sz 33554432 -d @",
    quoted(`${location.hostname}:50051`), `reward.v1.RewardService/Score < ${fileName(sent, i)}`].join(" \\\n  ");
}
