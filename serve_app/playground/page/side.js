// One of the two sides: its model and methods, what it said, how fast, and how.

import {html, useEffect, useRef, useState} from "./html.js";
import {Charts, mostOf} from "./charts.js";
import {Rooms} from "./methods.js";
import {NAMES} from "./playground.js";
import {figures} from "./run.js";
import {summary} from "./settings.js";
import {Steps} from "./steps.js";
import {percent, Tokens} from "./tokens.js";

const STATES = {
  idle: "",
  waiting: "waiting for the first token",
  streaming: "streaming",
  done: "finished",
  stopped: "stopped",
  failed: "failed",
  busy: "the server is busy",
};
const WHY = {stop: "the text ended", length: "most tokens reached", eos: "the model ended it", content_filter: "filtered"};

export function Side({page, state, side, at}) {
  const {settings, models, methods} = state;
  const name = NAMES[side];
  const own = settings.sides[side];
  const run = state.runs[side];
  const [active, setActive] = useState(null);
  const picked = state.steps[side];
  const problem = run.error?.field ? {field: run.error.field, message: run.error.message} : null;
  const engine = models.list.find((one) => one.id === own.model)?.raydecode?.engine ?? "";
  const chosen = useRef(null);
  useEffect(() => {
    if (problem && chosen.current && isInside(problem.field)) chosen.current.open = true;
  }, [run.error]);
  useEffect(() => setActive(null), [run]);
  return html`<article class="side" aria-labelledby="${name}-title">
    <header>
      <h2 id="${name}-title">${name}</h2>
      <${Model} ...${{page, side, models, own, name}} problem=${problem} />
    </header>
    <details class="methods" ref=${chosen}>
      <summary><span class="soft">Methods<span class="unseen"> of ${name}</span>: </span>${summary(own.methods)}</summary>
      ${methods.status === "ready"
        ? html`<${Rooms} methods=${methods.list} chosen=${own.methods} scope=${name} problem=${problem} engine=${engine} onChange=${(some) => page.changeSide(side, {methods: some})} />`
        : html`<p class="soft">${methods.status === "loading" ? "Loading the methods …" : "The methods could not be loaded."}</p>`}
    </details>
    <${Status} ...${{page, run, name}} />
    ${run.tokens.length
      ? html`<${Tokens}
          run=${run}
          name=${name}
          colour=${settings.colour}
          active=${active}
          onActive=${setActive}
          onStep=${(step) => page.pickStep(side, step)}
          at=${at}
        />`
      : html`<div class="textbox"><p class="plain">${run.text || html`<span class="soft">${EMPTY[run.status] ?? ""}</span>`}</p></div>`}
    ${run.text && !run.tokens.length && html`<p class="soft">No token was described here, so there is nothing to colour.</p>`}
    <${Figures} run=${run} />
    <${Charts} run=${run} name=${name} most=${mostOf(settings.compare ? state.runs : [run])} token=${active} step=${picked} onToken=${setActive} onStep=${(step) => page.pickStep(side, step)} />
    <${Steps} run=${run} name=${name} picked=${picked} onPick=${(step) => page.pickStep(side, step)} />
    <${Facts} run=${run} />
    <${Log} run=${run} name=${name} />
  </article>`;
}

const EMPTY = {idle: "The text will stand here.", waiting: "…", busy: "…", failed: "", stopped: "Stopped before the first token.", done: "The text is empty."};

function isInside(field) {
  return /^decoding\.(sampler|drafter|search|monitors|interventions)/.test(field);
}

function Model({page, side, models, own, name, problem}) {
  const known = models.list.some((one) => one.id === own.model);
  return html`<label class="model">
    <span class="unseen">Model of ${name}</span>
    <select data-path="${name}:model" aria-invalid=${problem?.field === "model" ? "true" : undefined} disabled=${!models.list.length} onChange=${(e) => page.changeSide(side, {model: e.target.value})}>
      ${!known && html`<option selected value=${own.model}>${own.model ? `${own.model} (not served)` : "no model"}</option>`}
      ${models.list.map((one) => html`<option value=${one.id} selected=${one.id === own.model}>${one.id}</option>`)}
    </select>
  </label>`;
}

/** What is going on, and what went wrong, with the next step. */
function Status({page, run, name}) {
  const left = run.status === "busy" ? Math.max(Math.ceil((run.retryAt - performance.now()) / 1000), 0) : 0;
  const why = run.status === "done" && run.finish ? `: ${WHY[run.finish] ?? run.finish}` : "";
  const row = run.about.row !== undefined ? `row ${run.about.row}, ` : "";
  return html`<div class="status ${run.status}">
    <p role="status">${row}${STATES[run.status]}${why}</p>
    ${run.status === "busy" && html`<p>${run.error?.message.replace(/\.?$/, ".")} Trying again in ${left} s. <button type="button" class="small" onClick=${() => (run.retryAt = 0)}>now</button></p>`}
    ${run.status === "failed" &&
    html`<div class="problem" role="alert">
      <p>${run.error.field && html`<code>${run.error.field}</code>: `}${run.error.message}</p>
      ${run.tokens.length > 0 && html`<p>What came before stays below.</p>`}
      <p class="row">
        ${run.error.field && html`<button type="button" class="small" onClick=${() => goTo(name, run.error.field)}>go to the field</button>`}
        <button type="button" class="small" onClick=${() => page.run()}>run again</button>
      </p>
    </div>`}
    ${(run.notes ?? []).map((note) => html`<p class="soft">${note}</p>`)}
  </div>`;
}

/** Focus the field of a message, or the nearest thing around it. */
export function goTo(name, field) {
  for (let path = field; path; path = path.replace(/(\.[^.[\]]*|\[\d+\]|^[^.[\]]+)$/, "")) {
    for (const scope of [name, ""]) {
      const found = document.querySelector(`[data-path="${CSS.escape(`${scope}:${path}`)}"]`);
      if (!found) continue;
      for (let around = found.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
      found.focus();
      found.scrollIntoView({block: "center"});
      return;
    }
  }
}

function Figures({run}) {
  if (!run.tokens.length) return null;
  const one = figures(run);
  const shown = [
    ["first token", one.firstMs === null ? null : one.firstMs < 995 ? `${Math.round(one.firstMs)} ms` : `${(one.firstMs / 1000).toFixed(2)} s`, "measured in this page, from the click to the first token"],
    ["tokens/s", one.rate === null ? null : one.rate.toFixed(one.rate < 10 ? 1 : 0), "measured in this page, behind the first tokens"],
    ["tokens", String(one.tokens), "output tokens, the end included"],
    ["tokens per step", one.perStep === null ? null : one.perStep.toFixed(2), "a step is one forward pass of the model"],
    ["drafts kept", one.acceptance === null ? null : percent(one.acceptance), "accepted of drafted tokens"],
    ["mean surprise", one.surprise === null ? null : `${one.surprise.toFixed(2)} nats`, "−ln p of the raw model"],
  ];
  return html`<dl class="figures">
    ${shown.map(([label, value, title]) => value !== null && html`<div title=${title}><dt>${label}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** What the server said at the end. */
function Facts({run}) {
  if (!run.facts) return null;
  const {stats, ...rest} = run.facts;
  return html`<details class="facts">
    <summary>What the server says of this run</summary>
    <pre tabindex="0" aria-label="Statistics of the run">${JSON.stringify({...rest, ...(stats ? {stats} : {}), ...(run.usage ? {usage: run.usage} : {})}, null, 1)}</pre>
  </details>`;
}

/** The stream for screen readers: whole pieces, not single tokens. */
function Log({run, name}) {
  const [said, setSaid] = useState([]);
  const told = useRef(0);
  useEffect(() => {
    setSaid([]);
    told.current = 0;
  }, [run]);
  useEffect(() => {
    const ended = !["streaming", "waiting", "busy"].includes(run.status);
    const fresh = run.text.slice(told.current);
    const end = ended ? fresh.length : Math.max(...[...fresh.matchAll(/[.!?\n]\s|\n/g)].map((m) => m.index + m[0].length), 0);
    const piece = fresh.slice(0, fresh.length > 400 && !end ? fresh.length : end);
    if (!piece.trim() || !run.startedAt) return;
    told.current += piece.length;
    setSaid((some) => [...some.slice(-20), piece.trim()]);
  }, [run.version, run.status]);
  return html`<div class="unseen" role="log" aria-live="polite" aria-label="Text of ${name} as it comes">${said.map((piece, i) => html`<p key=${i}>${piece}</p>`)}</div>`;
}
