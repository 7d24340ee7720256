// One field of an option schema as an input. Its path is the dotted name that the server uses in its messages.

import {html, useEffect, useState} from "./html.js";
import {rangeText, read, write} from "./schema.js";

/** problem: {field, message} of the last refusal, or null. path: "decoding.sampler[0].p"; scope: the side, or "" */
export function Field({field, value, onChange, path, scope = "", problem}) {
  const id = `${scope}-${path}`.replaceAll(/[^\w-]/g, "_");
  const wrong = problem?.field === path;
  const hint = hintOf(field);
  const described = [hint && `${id}-hint`, wrong && `${id}-wrong`].filter(Boolean).join(" ") || undefined;
  const common = {id, "data-path": `${scope}:${path}`, "aria-invalid": wrong ? "true" : undefined, "aria-describedby": described};
  const label = html`<span>${field.label ?? field.name.replaceAll("_", " ")}${field.required && html`<b class="need" title="required"> *</b>`}</span>`;
  if (field.kind === "boolean") {
    return html`<div class="field check">
      <label for=${id}>
        <input type="checkbox" ...${common} checked=${value ?? field.fallback ?? false} onChange=${(e) => onChange(e.target.checked)} />
        ${label}
      </label>
      <${Below} id=${id} hint=${hint} wrong=${wrong && problem.message} />
    </div>`;
  }
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${field.kind === "enum"
      ? html`<select ...${common} onChange=${(e) => onChange(read(field, e.target.value))}>
          ${!field.required && html`<option value="" selected=${value === undefined}>default${field.fallback !== undefined && `: ${field.fallback}`}</option>`}
          ${field.choices.map((one) => html`<option value=${String(one)} selected=${value === one}>${String(one)}</option>`)}
        </select>`
      : html`<${Typed} field=${field} value=${value} onChange=${onChange} common=${common} />`}
    <${Below} id=${id} hint=${hint} wrong=${wrong && problem.message} />
  </div>`;
}

/** Text that is read as a value while it is typed; the text stays as typed until the value changes from outside. */
function Typed({field, value, onChange, common}) {
  const [typed, setTyped] = useState(write(field, value));
  useEffect(() => {
    if (JSON.stringify(read(field, typed)) !== JSON.stringify(value)) setTyped(write(field, value));
  }, [JSON.stringify(value)]);
  const numeric = {integer: "numeric", number: "decimal"}[field.kind];
  return html`<input
    type="text"
    ...${common}
    inputmode=${numeric}
    autocomplete="off"
    spellcheck=${false}
    placeholder=${placeholder(field)}
    value=${typed}
    onInput=${(e) => {
      setTyped(e.target.value);
      onChange(read(field, e.target.value));
    }}
  />`;
}

function Below({id, hint, wrong}) {
  return html`${hint && html`<small id="${id}-hint">${hint}</small>`}
    ${wrong && html`<small id="${id}-wrong" class="wrong">${wrong}</small>`}`;
}

function placeholder(field) {
  if (field.fallback !== undefined && field.fallback !== null && !isEmpty(field.fallback)) return write(field, field.fallback);
  const [example] = field.examples ?? [];
  if (example !== undefined) return `e.g. ${write(field, example)}`;
  return field.required ? "" : "not set";
}

function isEmpty(value) {
  return (Array.isArray(value) && !value.length) || value === "";
}

function hintOf(field) {
  const forms = {list: "separated by commas", map: "as JSON", json: "as JSON"};
  return [field.description, rangeText(field.range), forms[field.kind]].filter(Boolean).join("; ");
}
