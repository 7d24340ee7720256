// Two small charts that grow with the stream: accepted draft length by step, surprise by token.

import {html} from "./html.js";
import {axes, bars, HEIGHT, indexAt, line, smoothed, WIDTH} from "./plot.js";
import {surprise} from "./run.js";

const WINDOW = 8;

/** most: {drafted, accepted, surprise}, the same for both sides, so that the charts can be compared */
export function Charts({run, name, most, token, step, onToken, onStep}) {
  const accepted = run.steps.map((one) => one.path.length - 1);
  const nats = run.tokens.map(surprise);
  const known = nats.filter((one) => one !== null);
  const mean = (some) => some.reduce((a, b) => a + b, 0) / some.length;
  return html`<div class="charts">
    ${most.drafted > 0 && accepted.length > 0 &&
    html`<${Chart}
      title="Accepted length"
      unit="drafted tokens, by step"
      said=${`${name}: mean accepted length ${mean(accepted).toFixed(2)} over ${accepted.length} steps, most ${Math.max(...accepted)}`}
      values=${accepted}
      most=${most.accepted}
      whole=${true}
      draw=${(scale) => html`<path class="bars" d=${bars(accepted, scale)} />`}
      marked=${step}
      onPick=${onStep}
    />`}
    ${known.length > 0 &&
    html`<${Chart}
      title="Surprise"
      unit="nats, by token; thick: mean of ${WINDOW}"
      said=${`${name}: mean surprise ${mean(known).toFixed(2)} nats over ${known.length} tokens, most ${Math.max(...known).toFixed(1)}`}
      values=${nats}
      most=${most.surprise}
      draw=${(scale) => html`<path class="fine" d=${line(nats, scale)} /><path class="thick" d=${line(smoothed(nats, WINDOW), scale)} />`}
      marked=${token}
      onPick=${onToken}
    />`}
  </div>`;
}

/** The largest values of several runs. */
export function mostOf(runs) {
  const accepted = runs.flatMap((run) => run.steps.map((one) => one.path.length - 1));
  const known = runs.flatMap((run) => run.tokens.map(surprise).filter((one) => one !== null));
  const drafted = runs.flatMap((run) => run.steps.map((one) => one.tokens.length - 1));
  return {drafted: Math.max(0, ...drafted), accepted: Math.max(1, ...accepted), surprise: Math.max(1, ...known)};
}

/** marked: index of the place in hand; onPick: a place was pointed at */
function Chart({title, unit, said, values, most, whole, draw, marked, onPick}) {
  const scale = axes(values.length, most, whole);
  const pick = (e) => {
    const box = e.currentTarget.getBoundingClientRect();
    const at = indexAt(((e.clientX - box.left) / box.width) * WIDTH, values.length);
    if (at !== null) onPick(at);
  };
  return html`<figure>
    <figcaption>${title} <small>${unit}</small></figcaption>
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${said} onClick=${pick}>
      ${scale.yTicks.map(
        (one) => html`<line class="grid" x1=${scale.x(0)} x2=${WIDTH} y1=${scale.y(one)} y2=${scale.y(one)} />
          <text x=${scale.x(0) - 5} y=${scale.y(one) + 4} text-anchor="end">${one}</text>`,
      )}
      ${scale.xTicks.map((one) => html`<text x=${scale.x(one)} y=${HEIGHT - 2} text-anchor="middle">${one}</text>`)}
      ${marked !== null && marked < values.length && html`<rect class="mark" x=${scale.x(marked)} y="0" width=${Math.max(scale.step, 2)} height=${scale.y(0)} />`}
      ${draw(scale)}
    </svg>
  </figure>`;
}
