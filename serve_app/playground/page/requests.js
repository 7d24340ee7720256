// A batch's rows joined with the requests that made them. Pure.

import {promptOf} from "./row.js";

/** Rows with the request that made each, from the batch's input lines. models: as /v1/models lists them */
export function joined(rows, input, models = []) {
  const requests = new Map(lines(input).map(({line}) => [line?.custom_id, line?.body]));
  return rows.map((row) => ({...row, request: row.request ?? requestOf(requests.get(row.run.about.row), row.run, models)}));
}

/** A sentence about input lines that are no JSON, which are passed over; "" where there are none. */
export function skipped(input) {
  const wrong = lines(input).filter(({line}) => line === null);
  if (!wrong.length) return "";
  const numbers = wrong.slice(0, 5).map(({number}) => number).join(", ");
  return `Passed over ${wrong.length === 1 ? "a line" : `${wrong.length} lines`} of the batch's input that ${wrong.length === 1 ? "is" : "are"} no JSON object: line ${numbers}${wrong.length > 5 ? ", ..." : ""}.`;
}

/** Lines that are not blank: {number, line}, null in place of what is no object. */
function lines(input) {
  const found = [];
  for (const [i, text] of input.split("\n").entries()) if (text.trim()) found.push({number: i + 1, line: objectOf(text)});
  return found;
}

function objectOf(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** A body as settings of a side; null where it uses what the page cannot say. */
export function requestOf(body, run, models = []) {
  if (!body) return null;
  const {messages, prompt, model, seed, max_tokens, max_completion_tokens, stop, noise_id} = body;
  const asked = promptOf(messages ?? prompt);
  if (!asked) return null;
  const own = ["model", "messages", "prompt", "seed", "max_tokens", "max_completion_tokens", "stop", "noise_id", "decoding", "logprobs", "top_logprobs", "temperature", "top_p", "stream"];
  if (Object.keys(body).some((name) => !own.includes(name)) || (body.n ?? 1) !== 1) return null;
  const served = models.find((one) => one.id === model)?.raydecode?.decoding ?? {};
  const chain = [];
  if (body.temperature !== undefined) chain.push({name: "temperature", value: body.temperature});
  if (body.top_p !== undefined) chain.push({name: "top_p", p: body.top_p});
  const given = {seed: seed ?? run.facts?.seed, max_tokens: max_completion_tokens ?? max_tokens, stop: typeof stop === "string" ? [stop] : stop};
  if (chain.length && served.sampler?.length) return null; // how the two go together only the server knows
  const sampler = chain.length ? {sampler: chain} : {};
  const decoding = {sampler: [], ...served, ...sampler, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value != null)), ...body.decoding};
  return {
    ...asked,
    decoding,
    noise_id: run.facts?.noise_id ?? noise_id ?? "",
    model,
  };
}
