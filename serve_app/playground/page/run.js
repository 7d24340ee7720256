// What one side has received: tokens, steps, times. A fold over chunks; the caller brings the clock. Pure but for `run`.

/** status: idle waiting streaming done stopped failed busy */
export function freshRun(about = {}) {
  return {
    status: "idle",
    about,
    text: "",
    tokens: [],
    steps: [],
    finish: null,
    usage: null,
    facts: null,
    error: null,
    startedAt: 0,
    firstAt: 0,
    lastAt: 0,
    firstTokens: 0,
    version: 0,
    decoder: new TextDecoder("utf-8"),
  };
}

/** Take a chunk of a stream, in OpenAI's shape with our `raydecode` field. now: milliseconds. */
export function take(run, chunk, now) {
  const choice = chunk.choices?.[0];
  const news = chunk.raydecode ?? {};
  const piece = choice?.delta?.content ?? choice?.text ?? "";
  if (piece || news.tokens?.length) {
    run.lastAt = now;
    if (!run.firstAt) [run.firstAt, run.status] = [now, "streaming"];
  }
  run.text += piece;
  const before = run.tokens.length;
  for (const token of news.tokens ?? []) takeToken(run, token);
  for (const step of news.steps ?? []) takeStep(run, step);
  if (!run.firstTokens) run.firstTokens = run.tokens.length - before;
  if (choice?.finish_reason) run.finish = choice.finish_reason;
  if (chunk.usage) run.usage = chunk.usage;
  const facts = without(news, "tokens", "steps");
  if (Object.keys(facts).length) run.facts = {...run.facts, ...facts};
  run.version++;
  return run;
}

/** Nothing more will come. status: done, stopped or failed. */
export function close(run, status, error = null) {
  Object.assign(run, {status, error});
  if (status === "done") markCut(run);
  run.version++;
  return run;
}

function takeToken(run, token) {
  const bytes = token.bytes && Uint8Array.from(token.bytes);
  const piece = bytes ? run.decoder.decode(bytes, {stream: true}) : (token.text ?? "");
  run.tokens.push({
    ...token,
    piece,
    size: bytes ? bytes.length : new TextEncoder().encode(token.text ?? "").length,
    special: bytes ? bytes.length === 0 : !token.text || /^token:\d+$/.test(token.text),
    drafter: null,
    step: null,
    cut: false,
  });
}

/** A step follows the tokens that it made: now it is known which of them were drafted. */
function takeStep(run, step) {
  if (!step.emitted.length) return; // a row that waits makes steps without tokens
  const index = run.steps.length;
  run.steps.push(step);
  const nodes = step.tokens.length;
  for (let i = 0; i < step.emitted.length; i++) {
    const at = step.t0 + i;
    const token = run.tokens[at];
    if (!token) continue;
    const accepted = i < step.path.length - 1;
    run.tokens[at] = {...token, step: index, drafter: accepted ? (step.drafter ?? (nodes > 1 ? "known" : null)) : null};
  }
}

/** Tokens behind the end of the text: a stop string took them back. */
function markCut(run) {
  if (run.finish !== "stop") return;
  const whole = new TextEncoder().encode(run.text).length;
  let at = 0;
  run.tokens = run.tokens.map((token) => {
    at += token.size;
    return at - token.size >= whole && !token.special ? {...token, cut: true} : token;
  });
}

function without(mapping, ...names) {
  return Object.fromEntries(Object.entries(mapping).filter(([name]) => !names.includes(name)));
}

/** Surprise of a token in nats, or null where it was not computed. */
export function surprise(token) {
  return typeof token.logp === "number" ? Math.max(-token.logp, 0) : null;
}

/** Who produced a token: "forced" by a constraint, "draft" (drafted and accepted), else "model". */
export function source(token) {
  if (token.source === "forced") return "forced";
  return token.drafter ? "draft" : "model";
}

/** Figures of a run, measured here; null where there is nothing to measure. */
export function figures(run, now) {
  const {tokens, steps} = run;
  const drafted = steps.reduce((sum, step) => sum + step.tokens.length - 1, 0);
  const accepted = steps.reduce((sum, step) => sum + step.path.length - 1, 0);
  const emitted = steps.reduce((sum, step) => sum + step.emitted.length, 0);
  const known = tokens.map(surprise).filter((one) => one !== null);
  const streamed = run.lastAt - run.firstAt;
  const timed = run.startedAt > 0;
  return {
    tokens: tokens.length,
    steps: steps.length,
    perStep: steps.length ? emitted / steps.length : null,
    drafted,
    acceptance: drafted ? accepted / drafted : null,
    surprise: known.length ? known.reduce((a, b) => a + b, 0) / known.length : null,
    firstMs: timed && run.firstAt ? run.firstAt - run.startedAt : null,
    rate: timed && streamed > 0 && tokens.length > run.firstTokens ? ((tokens.length - run.firstTokens) * 1000) / streamed : null,
    waitingMs: timed && !run.firstAt && now ? now - run.startedAt : null,
  };
}

/** Where two runs part: index of the first token that differs, null while (or because) they are equal.
 *  ids: compare token ids (one vocabulary), else texts. */
export function firstDifference(a, b, ids = true) {
  [a, b] = [a, b].map(unended);
  if (!ids) return differenceOfTexts(a, b);
  const both = Math.min(a.tokens.length, b.tokens.length);
  for (let i = 0; i < both; i++) if (!same(a.tokens[i], b.tokens[i])) return {a: i, b: i};
  if (a.tokens.length === b.tokens.length) return null;
  const shorter = a.tokens.length < b.tokens.length ? a : b;
  return shorter.status === "done" ? {a: both, b: both} : null;
}

/** Without the token that ended the text: stored answers leave it out, streams have it. */
function unended(run) {
  const ended = run.status === "done" && run.tokens.at(-1)?.special;
  return ended ? {...run, tokens: run.tokens.slice(0, -1)} : run;
}

function same(one, other) {
  return one.id != null && other.id != null ? one.id === other.id : one.piece === other.piece;
}

function differenceOfTexts(a, b) {
  const [one, two] = [a, b].map((run) => run.tokens.map((token) => token.piece).join(""));
  const both = Math.min(one.length, two.length);
  let at = 0;
  while (at < both && one[at] === two[at]) at++;
  if (at === both && (one.length === two.length || (one.length < two.length ? a : b).status !== "done")) return null;
  return {a: tokenAt(a, at), b: tokenAt(b, at)};
}

function tokenAt(run, place) {
  let end = 0;
  const found = run.tokens.findIndex((token) => (end += token.piece.length) > place);
  return found < 0 ? run.tokens.length : found;
}

/** What to say of two runs: {state: "none" | "so far" | "identical" | "differ", at, tokens} */
export function comparison(a, b, ids = true) {
  const both = Math.min(a.tokens.length, b.tokens.length);
  if (!both) return {state: "none", at: null, tokens: 0};
  const at = firstDifference(a, b, ids);
  if (at) return {state: "differ", at, tokens: Math.min(at.a, at.b)};
  const ended = a.status === "done" && b.status === "done";
  return {state: ended ? "identical" : "so far", at: null, tokens: both};
}
