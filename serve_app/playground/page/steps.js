// One step's draft tree as a picture, and the way to every other step.

import {html} from "./html.js";
import {describe, layout, LINE} from "./tree.js";

/** The step to show where none is picked: the newest while it runs, then the one that accepted most. */
function byItself(run) {
  if (run.status === "streaming") return run.steps.length - 1;
  if (run.steps.every((step) => step.path.length < 2)) return run.steps.length - 1;
  return run.steps.reduce((best, step, i) => (step.path.length > run.steps[best].path.length ? i : best), 0);
}

/** picked: index of a step, or null. */
export function Steps({run, name, picked, onPick}) {
  const {steps, tokens} = run;
  if (!steps.length) return null;
  const at = Math.min(picked ?? byItself(run), steps.length - 1);
  const step = steps[at];
  const own = tokens[step.t0 + step.emitted.length - 1];
  const id = `${name}-step`;
  return html`<section class="steps" aria-label="Draft tree of ${name}">
    <div class="stepbar">
      <label for=${id}>Step <b>${at + 1}</b> of ${steps.length}</label>
      <input
        id=${id}
        type="range"
        min="1"
        max=${steps.length}
        value=${at + 1}
        onInput=${(e) => onPick(Number(e.target.value) - 1)}
      />
      <button type="button" class="small" disabled=${at === 0} aria-label="previous step of ${name}" onClick=${() => onPick(at - 1)}>◀</button>
      <button type="button" class="small" disabled=${at === steps.length - 1} aria-label="next step of ${name}" onClick=${() => onPick(at + 1)}>▶</button>
      <button type="button" class="small" aria-pressed=${picked === null ? "true" : "false"} onClick=${() => onPick(picked === null ? at : null)}>${run.status === "streaming" ? "newest" : "longest"}</button>
    </div>
    <${Picture} step=${step} own=${own} name=${name} />
    <p class="soft">${describe(step, own)}</p>
  </section>`;
}

function Picture({step, own, name}) {
  const {width, height, nodes, edges} = layout(step, own);
  return html`<div class="tree" tabindex="0" role="group" aria-label="Picture of the draft tree of ${name}, scrolls">
    <svg width=${width} height=${height} viewBox="0 0 ${width} ${height}" role="img" aria-label=${describe(step, own)}>
      ${edges.map((one) => html`<path class="edge ${one.state}" d=${one.d} />`)}
      ${nodes.map(
        (one) => html`<g class="node ${one.state}">
          <rect x=${one.x} y=${one.y - LINE / 2 + 3} width=${one.width} height=${LINE - 6} rx="5" />
          <text x=${one.x + one.width / 2} y=${one.y + 4} text-anchor="middle">${one.label}</text>
        </g>`,
      )}
    </svg>
  </div>`;
}

/** What the signs in the picture mean. */
export function TreeLegend() {
  return html`<p class="legend soft">
    <span><i class="swatch root"></i>pending before the step</span>
    <span><i class="swatch accepted"></i>drafted, accepted</span>
    <span><i class="swatch own"></i>the model's own</span>
    <span><i class="swatch rejected"></i>drafted, rejected</span>
  </p>`;
}
