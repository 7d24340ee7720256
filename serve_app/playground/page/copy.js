// The settings of a side as something to run elsewhere: curl, Python with the openai client, a job file's section. Pure.

import {decodingOf, requestOf} from "./settings.js";

const KEY = "RAYDECODE_API_KEY";

/** base: the server's address with a slash at its end; keyed: the server wants a key (its value is never written). */
export function curl(settings, side, base, keyed) {
  const {path, body} = requestOf(settings, side);
  const lines = [`curl -N ${quoted(base + path)}`, `-H 'Content-Type: application/json'`];
  if (keyed) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  lines.push(`-d ${quoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ") + "\n";
}

/** For /bin/sh. */
export function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

export function python(settings, side, base, keyed) {
  const {body} = requestOf(settings, side);
  const chat = "messages" in body;
  const extra = {decoding: body.decoding, ...(body.noise_id ? {noise_id: body.noise_id} : {})};
  const [what, input] = chat ? ["chat.completions", "messages"] : ["completions", "prompt"];
  const key = keyed ? `os.environ["${KEY}"]` : `"none"`;
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(base + "v1")}, api_key=${key})
stream = client.${what}.create(
    model=${literal(body.model)},
    ${input}=${literal(body[input], 4)},
    stream=True,
    extra_body=${literal(extra, 4)},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].${chat ? "delta.content" : "text"} or "", end="", flush=True)
print()
`;
}

/** A value as Python writes it; mappings and lists of mappings over several lines. */
export function literal(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value).replaceAll("\u2028", "\\u2028").replaceAll("\u2029", "\\u2029");
  const [open, shut] = Array.isArray(value) ? "[]" : "{}";
  const parts = Array.isArray(value)
    ? value.map((one) => literal(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, indent + 4)}`);
  const flat = open + parts.join(", ") + shut;
  if (flat.length + indent <= 88 && !flat.includes("\n")) return flat;
  const margin = " ".repeat(indent + 4);
  return `${open}\n${parts.map((part) => `${margin}${part},\n`).join("")}${" ".repeat(indent)}${shut}`;
}

/** The sections of a job file that do the same to every row of a corpus. */
export function yaml(settings, side) {
  const decoding = decodingOf(settings, side);
  const lines = Object.entries(decoding).flatMap(([name, value]) => {
    const many = Array.isArray(value) && value.some((one) => typeof one === "object");
    return many ? [`  ${name}:`, ...value.map((one) => `    - ${flow(one)}`)] : [`  ${name}: ${flow(value)}`];
  });
  const noise = settings.noise_id ? JSON.stringify(settings.noise_id) : "the row's id, which is empty here";
  const prompt = settings.mode === "chat" ? `prompt: {template: "{{ prompt }}", chat: true}\n` : `prompt: {template: "{{ prompt }}"}\n`;
  const system = settings.mode === "chat" && settings.system ? "# the system message is not part of this template: use prompt.messages\n" : "";
  return `# In a job file a row's noise is named by its id; in this request it was ${noise}.\n${system}${prompt}decoding:\n${lines.join("\n")}\n`;
}

/** A value in YAML's flow style; JSON's strings are YAML's double-quoted ones. */
export function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (value !== null && typeof value === "object")
    return `{${Object.entries(value).map(([name, one]) => `${plain(name)}: ${flow(one)}`).join(", ")}}`;
  return typeof value === "string" ? plain(value) : JSON.stringify(value);
}

const RESERVED = /^(true|false|yes|no|on|off|null|y|n|~)$/i;

function plain(text) {
  return /^[A-Za-z_][A-Za-z0-9_-]*$/.test(text) && !RESERVED.test(text) ? text : JSON.stringify(text);
}
