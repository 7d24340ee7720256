// What opens over the page: copy as code, open a row, keys. The browser's own <dialog>: Escape closes, focus returns.

import {html, useEffect, useRef, useState} from "./html.js";
import {Batches} from "./batches.js";
import {curl, python, yaml} from "./copy.js";
import {copyText, NAMES} from "./playground.js";
import {openRows} from "./row.js";

export function Dialog({title, onClose, children}) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${onClose} onClick=${(e) => e.target === box.current && box.current.close()}>
    <div class="inside">
      <header>
        <h2 id="dialog-title">${title}</h2>
        <button type="button" class="small" aria-label="close" onClick=${() => box.current.close()}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}

const FORMS = {curl, Python: python, YAML: yaml};

export function Copy({page, state}) {
  const {settings} = state;
  const [form, setForm] = useState("curl");
  const [side, setSide] = useState(0);
  const [done, setDone] = useState("");
  const text = FORMS[form](settings, side, page.base, Boolean(state.key));
  const sides = settings.compare ? [0, 1] : [0];
  return html`<${Dialog} title="Copy as code" onClose=${() => page.store.set({dialog: null})}>
    <div class="row">
      <${Choice} label="Form" name="form" options=${Object.keys(FORMS)} value=${form} onChange=${setForm} />
      ${sides.length > 1 && html`<${Choice} label="Side" name="side" options=${NAMES} value=${NAMES[side]} onChange=${(one) => setSide(NAMES.indexOf(one))} />`}
    </div>
    <pre tabindex="0" aria-label="Code">${text}</pre>
    <div class="row">
      <button type="button" class="main" onClick=${async () => setDone((await copyText(text)) ? "Copied." : "The browser did not allow it: select the text and copy it.")}>Copy</button>
      <span role="status" class="soft">${done}</span>
    </div>
    ${state.key && form !== "YAML" && html`<p class="soft">The key is not written here: put it into the environment variable RAYDECODE_API_KEY.</p>`}
  <//>`;
}

/** A few values, one of them chosen: radio buttons that look like one control. */
export function Choice({label, name, options, value, onChange}) {
  return html`<fieldset class="choice">
    <legend class="unseen">${label}</legend>
    ${options.map(
      (one) => html`<label class=${one === value ? "on" : ""}>
        <input type="radio" name=${name} value=${one} checked=${one === value} onChange=${() => onChange(one)} />${one}
      </label>`,
    )}
  </fieldset>`;
}

export function OpenRow({page, state}) {
  const [rows, setRows] = useState([]);
  const [error, setError] = useState("");
  const read = async (file) => {
    setError("");
    try {
      setRows(openRows(await file.text(), file.name));
    } catch (problem) {
      setRows([]);
      setError(problem.message);
    }
  };
  return html`<${Dialog} title="Open a finished row" onClose=${() => page.store.set({dialog: null})}>
    <p>A row of a batch job, from a file that <code>raydecode explain OUT --id ID --json > row.json</code> wrote; or an answer that was stored, also many of them, line by line.</p>
    <label class="drop" onDragOver=${(e) => e.preventDefault()} onDrop=${(e) => {
      e.preventDefault();
      e.stopPropagation();
      const [file] = e.dataTransfer.files;
      if (file) read(file);
    }}>
      <span>Drop a file here, or choose one</span>
      <input type="file" accept=".json,.jsonl,application/json" onChange=${(e) => e.target.files[0] && read(e.target.files[0])} />
    </label>
    ${error && html`<p class="wrong" role="alert">${error}</p>`}
    <${RowList} ...${{page, rows}} />
    <${Batches} ...${{page, state}} onRows=${(some) => (setError(""), setRows(some))} onError=${setError} />
  <//>`;
}

const MOST = 200;

function RowList({page, rows}) {
  if (!rows.length) return null;
  return html`<ul class="rows" aria-label="Rows that were found">
    ${rows.slice(0, MOST).map(
      (row) => html`<li key=${row.name}>
        <b>${row.name}</b>
        <span class="soft">${row.run.text.slice(0, 80)}</span>
        <span class="tools">
          ${NAMES.map(
            (name, side) => html`<button type="button" class="small" onClick=${() => {
              if (side) page.change({compare: true});
              page.openRow(side, row);
            }}>show in ${name}</button>`,
          )}
          ${row.request &&
          html`<button type="button" class="small" title="takes over prompt, methods, seed and noise; shows the row in A and runs it again in B" onClick=${() => {
            page.adoptRow(0, row.request);
            page.adoptRow(1, row.request);
            page.change({compare: true});
            page.openRow(0, row);
            page.runAgainst(1);
          }}>compare with a new run</button>`}
        </span>
      </li>`,
    )}
    ${rows.length > MOST && html`<li class="soft">and ${rows.length - MOST} more</li>`}
  </ul>`;
}

const KEYS = [
  ["Ctrl + Enter", "run both sides (from anywhere)"],
  ["Escape", "close what is open; else stop"],
  ["Tab", "from field to field; a text is one stop"],
  ["← →", "in a text: token by token, with its alternatives"],
  ["↑ ↓", "in a text: step by step"],
  ["Home, End", "in a text: first and last token"],
  ["Enter", "in a text: show the draft tree of the token's step"],
];

export function Keys({page}) {
  return html`<${Dialog} title="Keys" onClose=${() => page.store.set({dialog: null})}>
    <dl class="keys">${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
  <//>`;
}
