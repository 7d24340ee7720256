// All that a person can set, as one plain value; to and from a link; to the body of a request. Pure.
//
// settings  {mode, prompt, system, decoding, noise_id, compare, order, colour, sides: [{model, methods}, {model, methods}]}
// decoding  what both sides share: max_tokens, seed, stop, ...
// methods   room -> list of cards; a room of one method holds a list of at most one

export const VERSION = "1";

/** Room -> the key of `decoding` that names its methods; rooms of one method in `SINGLE`. */
export const KEYS = {
  samplers: "sampler",
  drafters: "drafter",
  searches: "search",
  monitors: "monitors",
  interventions: "interventions",
};
export const SINGLE = new Set(["drafters", "searches"]);

/** How many alternatives a token brings. */
export const ALTERNATIVES = 5;

/** Fields of `decoding` that no method owns, as schema.js describes fields. */
export const LIMITS = [
  {name: "max_tokens", label: "Most tokens", kind: "integer", fallback: 256, range: {minimum: 1}, description: ""},
  {name: "seed", label: "Seed", kind: "integer", fallback: 0, range: {minimum: 0}, description: "one seed, one text"},
  {name: "stop", label: "Stop strings", kind: "list", item: {kind: "string"}, fallback: [], description: "the text ends before; \\n is a line end"},
  {name: "stop_tokens", label: "Stop tokens", kind: "list", item: {kind: "integer", range: {minimum: 0}}, fallback: [], description: "token ids that end the text, besides the model's own"},
  {name: "deadline_s", label: "Deadline", kind: "number", range: {exclusiveMinimum: 0}, description: "seconds; depends on the clock, so not part of the promise"},
  {name: "ignore_eos", label: "Ignore the end token", kind: "boolean", fallback: false, description: "the model's end of text is an ordinary token"},
];

export function initial() {
  const chain = () => [{name: "temperature", value: 0.8}, {name: "top_p", p: 0.9}];
  return {
    mode: "chat",
    prompt: "",
    system: "",
    decoding: {max_tokens: 128, seed: 7},
    noise_id: "",
    compare: true,
    order: "together",
    colour: "surprise",
    sides: [
      {model: "", methods: {samplers: chain()}},
      {model: "", methods: {samplers: chain(), drafters: [{name: "ngram"}]}},
    ],
  };
}

const CHOICES = {mode: ["chat", "plain"], order: ["together", "in turn"], colour: ["surprise", "source"]};

/** Any value as settings: what is not understood is left at its start value, so an old or foreign link still opens. */
export function settle(value) {
  const out = initial();
  if (!isMapping(value)) return out;
  for (const name of ["prompt", "system", "noise_id"]) if (typeof value[name] === "string") out[name] = value[name];
  for (const [name, some] of Object.entries(CHOICES)) if (some.includes(value[name])) out[name] = value[name];
  if (typeof value.compare === "boolean") out.compare = value.compare;
  if (isMapping(value.decoding)) {
    const known = new Set(LIMITS.map((field) => field.name));
    out.decoding = Object.fromEntries(Object.entries(value.decoding).filter(([name]) => known.has(name)));
  }
  if (Array.isArray(value.sides)) {
    out.sides = out.sides.map((side, i) => settleSide(side, value.sides[i]));
  }
  return out;
}

function settleSide(side, value) {
  if (!isMapping(value)) return side;
  const methods = {};
  for (const [room, cards] of Object.entries(isMapping(value.methods) ? value.methods : {})) {
    const named = Array.isArray(cards) ? cards.filter((card) => isMapping(card) && typeof card.name === "string") : [];
    if (room in KEYS && named.length) methods[room] = SINGLE.has(room) ? named.slice(0, 1) : named;
  }
  return {model: typeof value.model === "string" ? value.model : side.model, methods};
}

function isMapping(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

/** The settings as the part of a link behind "#". */
export function toFragment(settings) {
  const bytes = new TextEncoder().encode(JSON.stringify(settings));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return `s${VERSION}=` + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Settings from a link, or null when it holds none. */
export function fromFragment(fragment) {
  const found = new RegExp(`^#?s${VERSION}=([A-Za-z0-9_-]+)$`).exec(fragment ?? "");
  if (!found) return null;
  try {
    const binary = atob(found[1].replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (sign) => sign.charCodeAt(0));
    return settle(JSON.parse(new TextDecoder("utf-8", {fatal: true}).decode(bytes)));
  } catch {
    return null;
  }
}

/** The section `decoding` of one side: the same in a request, a job file and a row's column. */
export function decodingOf(settings, side) {
  const out = {...settings.decoding};
  const {methods} = settings.sides[side];
  for (const [room, key] of Object.entries(KEYS)) {
    const cards = methods[room] ?? [];
    if (SINGLE.has(room)) {
      if (room === "drafters" || cards.length) out[key] = cards[0] ?? "none";
    } else if (room === "samplers" || cards.length) out[key] = cards;
  }
  return out;
}

/** Where a request of one side goes, and its body. `trace`: with all that the page draws from. */
export function requestOf(settings, side, {trace = false} = {}) {
  const decoding = decodingOf(settings, side);
  const body = {model: settings.sides[side].model};
  if (settings.mode === "chat") {
    body.messages = [{role: "user", content: settings.prompt}];
    if (settings.system) body.messages.unshift({role: "system", content: settings.system});
  } else body.prompt = settings.prompt;
  if (settings.noise_id) body.noise_id = settings.noise_id;
  body.stream = true;
  if (trace) {
    body.stream_options = {include_usage: true};
    body.trace = true;
    decoding.logprobs = ALTERNATIVES;
  }
  body.decoding = decoding;
  return {path: settings.mode === "chat" ? "v1/chat/completions" : "v1/completions", body};
}

/** The methods of a side in a line: "temperature 0.8 → top_p 0.9, drafted by auto". */
export function summary(methods) {
  const chain = (methods.samplers ?? []).map(cardText);
  const parts = [chain.length ? chain.join(" → ") : "the model's own law"];
  const [drafter] = methods.drafters ?? [];
  parts.push(drafter ? `drafted by ${cardText(drafter)}` : "no drafter");
  for (const room of ["searches", "monitors", "interventions"])
    for (const card of methods[room] ?? []) parts.push(cardText(card));
  return parts.join(", ");
}

function cardText(card) {
  const options = Object.entries(card).filter(([name, value]) => name !== "name" && value !== undefined && value?.length !== 0);
  const shown = options.map(([name, value]) => (options.length === 1 && typeof value !== "object" ? `${value}` : `${name} ${valueText(value)}`));
  return [card.name, ...shown].join(" ");
}

function valueText(value) {
  if (Array.isArray(value)) return value.map((one) => (one?.name ? cardText(one) : valueText(one))).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
