// A batch's rows joined with the requests that made them. Pure.

import {promptOf} from "./row.js";

/** Rows with the request that made each, from the batch's input lines. models: as /v1/models lists them */
export function joined(rows, input, models = []) {
  const requests = new Map();
  for (const line of input.split("\n")) {
    if (!line.trim()) continue;
    const {custom_id, body} = JSON.parse(line);
    requests.set(custom_id, body);
  }
  return rows.map((row) => ({...row, request: row.request ?? requestOf(requests.get(row.run.about.row), row.run, models)}));
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
