// A finished row as a run: what `raydecode explain --json` printed, or answers that were stored (a batch's output). Pure.

import {close, freshRun, take} from "./run.js";

/** What a file holds: a list of {name, run, request}. Raises Error with a sentence that says what would fit.
 *  request: what made the row, as far as the file says it: {prompt, mode, system, decoding, noise_id, model} */
export function openRows(text, name = "the file") {
  const values = parse(text, name);
  const rows = values.flatMap((value) => rowsOf(value) ?? []);
  if (!rows.length)
    throw new Error(
      `${name} holds no row that can be shown. It takes what “raydecode explain OUT --id ID --json” prints, or the output of a batch, line by line.`,
    );
  return rows;
}

function parse(text, name) {
  try {
    return [JSON.parse(text)].flat();
  } catch {
    const lines = text.split("\n").filter((line) => line.trim());
    return lines.map((line, i) => {
      try {
        return JSON.parse(line);
      } catch (error) {
        throw new Error(`${name} is no JSON, and its line ${i + 1} is none either: ${error.message}`);
      }
    });
  }
}

function rowsOf(value) {
  if (value?.response?.body) return answered(value.response.body, value.custom_id);
  if (Array.isArray(value?.choices)) return answered(value, value.id);
  if (Array.isArray(value?.steps) && "noise_id" in value) return [explained(value)];
  return null;
}

/** `raydecode explain --json` */
function explained(value) {
  const run = freshRun({row: value.id, sample: value.sample, stored: value.equal});
  const tokens = value.trace?.tokens ?? value.steps.map(tokenOf);
  const choice = {text: value.text, finish_reason: value.finish_reason};
  take(run, {choices: [choice], raydecode: {tokens, steps: value.trace?.steps ?? [], noise_id: value.noise_id}}, 0);
  run.notes = [
    value.equal
      ? "Equal to the stored text: it was made again from its seed."
      : `Differs from the stored text at character ${value.first_difference}.`,
  ];
  if (!value.trace?.steps) run.notes.push("This file says nothing of draft trees: print it again with this version of explain.");
  const prompt = promptOf(value.prompt);
  const request = value.decoding && !value.sample && prompt ? {...prompt, decoding: value.decoding, noise_id: value.noise_id, model: null} : null;
  return {name: `${value.id}${value.sample ? `, sample ${value.sample}` : ""}`, run: close(run, "done"), request};
}

/** A prompt as the page can say it: a text, or one message with or without the system's; null for any other. */
export function promptOf(prompt) {
  if (typeof prompt === "string") return {mode: "plain", prompt, system: ""};
  const turns = (prompt ?? []).filter((one) => one.role !== "system");
  const system = (prompt ?? []).filter((one) => one.role === "system");
  const texts = [...turns, ...system].every((one) => typeof one.content === "string");
  if (turns.length !== 1 || turns[0].role !== "user" || system.length > 1 || !texts) return null;
  return {mode: "chat", prompt: turns[0].content, system: system[0]?.content ?? ""};
}

/** A token of explain before it printed traces. */
function tokenOf(step) {
  const top = (step.alternatives ?? []).map(({token, text, logp}) => ({id: token, text, logp}));
  return {t: step.t, id: step.token, text: step.text, logp: step.logp, source: step.source, kept: step.kept_nats ?? 0, top};
}

/** A whole answer of the server, from /v1/chat/completions or /v1/completions. */
function answered(body, name) {
  return (body.choices ?? []).map((choice) => {
    const run = freshRun({row: name, sample: choice.index});
    const text = choice.message?.content ?? choice.text ?? "";
    const said = body.raydecode ?? {};
    const tokens = said.tokens ?? chatTokens(choice.logprobs) ?? plainTokens(choice.logprobs) ?? [];
    take(run, {choices: [{text, finish_reason: choice.finish_reason}], usage: body.usage, raydecode: {...said, tokens, steps: said.steps ?? []}}, 0);
    run.notes = [];
    if (!tokens.length) run.notes.push("This answer has no log-probabilities, so its tokens are not known: ask for them in the request.");
    else if (!said.steps?.length) run.notes.push("This answer says nothing of draft trees: run it again here to see them.");
    return {name: `${name}${choice.index ? `, sample ${choice.index}` : ""}`, run: close(run, "done"), request: null};
  });
}

function chatTokens(logprobs) {
  return logprobs?.content?.map((one, t) => ({
    t,
    id: one.token_id ?? null,
    text: one.token,
    bytes: one.bytes ?? undefined,
    logp: one.logprob,
    source: "sampled",
    top: (one.top_logprobs ?? []).map((other) => ({id: null, text: other.token, logp: other.logprob})),
  }));
}

function plainTokens(logprobs) {
  return logprobs?.tokens?.map((text, t) => ({
    t,
    id: null,
    text,
    logp: logprobs.token_logprobs?.[t] ?? null,
    source: "sampled",
    top: Object.entries(logprobs.top_logprobs?.[t] ?? {}).map(([other, logp]) => ({id: null, text: other, logp})),
  }));
}
