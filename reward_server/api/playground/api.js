// The server's HTTP API, and requests as it reads them.

/** A request that failed as a whole. */
export class ApiError extends Error {
  constructor(code, message, { retryable = false, retryAfterS = null, items = [] } = {}) {
    super(message);
    Object.assign(this, { code, retryable, retryAfterS, items });
  }
}

export async function listScorers(key) {
  return (await ask("v1/scorers", key)).scorers;
}

/** Sends the requests one after the other and joins their results; adds the time it took. */
export async function score(requests, key, signal) {
  const started = performance.now();
  const results = [];
  for (const request of requests) {
    const answer = await ask("v1/score", key, { method: "POST", signal,
      headers: { "content-type": "application/json" }, body: JSON.stringify(request) });
    results.push(...answer.results);
  }
  return { results, totalMs: performance.now() - started };
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw new ApiError("CANCELLED", "cancelled");
    throw new ApiError("UNAVAILABLE", "The server cannot be reached: is it still running?", { retryable: true });
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  const error = body?.error ?? { code: `HTTP ${answer.status}`, message: answer.statusText };
  const retryAfterS = Number(answer.headers.get("retry-after")) || null;
  throw new ApiError(error.code, error.message, { ...error, retryAfterS });
}

const ENCODINGS = { "image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP" };
export const isImage = (file) => file.type in ENCODINGS;

async function media(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("INVALID_ARGUMENT", `${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  return { data: url.slice(url.indexOf(",") + 1), encoding: ENCODINGS[file.type] };
}

/**
 * What the form asks for, as one request, or two: an item carries one spec, so a GenEval row and a
 * text to read travel apart.
 *
 * @param form {images: [File], isVideo, prompt, references: [File], specs: {geneval, ocr, metadata},
 *   scorers: [{name, transform, inputs}]}; a spec that is null is not there.
 */
export async function requestsOf(form) {
  const groups = groupedBySpec(form.scorers, form.specs);
  const pictures = await Promise.all(form.images.map(media));
  const references = await Promise.all(form.references.map(media));
  const sets = form.isVideo ? [pictures] : pictures.map((picture) => [picture]);
  const names = form.isVideo ? ["video"] : form.images.map((file) => file.name);
  return groups.map(({ kind, scorers }) => ({
    scorers: scorers.map(({ name, transform }) => (transform ? { name, transform } : { name })),
    items: sets.map((images, index) => ({
      id: `${index}:${names[index]}`,
      ...(form.prompt ? { prompt: form.prompt } : {}),
      images,
      ...referencesOf(references, index, sets.length),
      ...(kind ? { [kind]: form.specs[kind] } : {}),
    })),
    include_details: true,
  }));
}

function groupedBySpec(scorers, specs) {
  const groups = new Map();
  const plain = [];
  for (const scorer of scorers) {
    const kind = scorer.inputs.map((input) => input.replace("spec.", "")).find((name) => specs[name]);
    if (kind) groups.set(kind, [...(groups.get(kind) ?? []), scorer]);
    else plain.push(scorer);
  }
  const found = [...groups].map(([kind, members]) => ({ kind, scorers: members }));
  if (!found.length) return [{ kind: null, scorers: plain }];
  found[0].scorers.push(...plain);
  return found;
}

function referencesOf(references, index, n) {
  if (!references.length) return {};
  if (references.length === 1) return { references };
  if (n === 1) return { references };
  if (references.length !== n) {
    throw new ApiError("INVALID_ARGUMENT", `${references.length} references for ${n} images: choose one for all, or one for each`);
  }
  return { references: [references[index]] };
}
