// The text as tokens: coloured, one stop of the tab key, walked with the arrow keys; alternatives beside the one in hand.

import {Component, html, useEffect, useLayoutEffect, useRef, useState} from "./html.js";
import {heat} from "./plot.js";
import {source, surprise} from "./run.js";
import {shown} from "./tree.js";

const SAID = {model: "chosen by the model", draft: "accepted draft", forced: "forced by a constraint"};
const CLOSE_MS = 160;

/** active: index of the token in hand, or null; at: first difference, or null */
export function Tokens({run, name, colour, active, onActive, onStep, at}) {
  const box = useRef(null);
  const timer = useRef(0);
  const tokenAt = (index) => box.current?.querySelector(`[data-t="${index}"]`);
  const [byKey, setByKey] = useState(false);
  const {tokens} = run;
  useEffect(() => () => clearTimeout(timer.current), []);
  useLayoutEffect(() => {
    if (byKey && active !== null) tokenAt(active)?.scrollIntoView({block: "nearest"});
  }, [active, byKey]);
  const hold = (index, keyboard) => {
    clearTimeout(timer.current);
    setByKey(keyboard);
    onActive(index);
  };
  const leave = () => {
    clearTimeout(timer.current);
    if (!byKey) timer.current = setTimeout(() => onActive(null), CLOSE_MS);
  };
  const indexOf = (e) => {
    const found = e.target.closest?.("[data-t]");
    return found ? Number(found.dataset.t) : null;
  };
  const onKeyDown = (e) => {
    const last = tokens.length - 1;
    const now = active ?? -1;
    const step = tokens[now]?.step ?? -1;
    const moves = {
      ArrowRight: () => Math.min(now + 1, last),
      ArrowLeft: () => Math.max(now - 1, 0),
      ArrowDown: () => tokens.findIndex((token) => token.step > step),
      ArrowUp: () => tokens.findIndex((token) => token.step === step - 1),
      Home: () => 0,
      End: () => last,
    };
    if (e.key in moves && tokens.length) {
      const to = moves[e.key]();
      if (to >= 0) hold(to, true);
      e.preventDefault();
    } else if (e.key === "Enter" && tokens[now]?.step != null) {
      onStep(tokens[now].step);
      e.preventDefault();
    } else if (e.key === "Escape" && active !== null) {
      onActive(null);
      e.preventDefault();
      e.stopPropagation();
    }
  };
  return html`<div class="textbox">
    <div
      class="tokens by-${colour}"
      ref=${box}
      role="listbox"
      tabindex="0"
      aria-label="Text of ${name}, token by token"
      aria-activedescendant=${active === null ? undefined : `${name}-t${active}`}
      onKeyDown=${onKeyDown}
      onFocus=${(e) => tokens.length && active === null && e.target.matches(":focus-visible") && hold(0, true)}
      onBlur=${() => onActive(null)}
      onPointerOver=${(e) => indexOf(e) !== null && hold(indexOf(e), false)}
      onPointerOut=${leave}
      onClick=${(e) => indexOf(e) !== null && tokens[indexOf(e)].step !== null && onStep(tokens[indexOf(e)].step)}
    >
      ${tokens.map((token, i) => html`<${Token} key=${i} ...${{token, name, i}} active=${active === i} parts=${at === i} />`)}
    </div>
    ${active !== null && tokens[active] && html`<${Alternatives} token=${tokens[active]} anchor=${() => tokenAt(active)} onEnter=${() => clearTimeout(timer.current)} onLeave=${leave} />`}
  </div>`;
}

/** Drawn again only when the token or its marks change: texts have hundreds of them. */
class Token extends Component {
  shouldComponentUpdate(next) {
    return next.token !== this.props.token || next.active !== this.props.active || next.parts !== this.props.parts;
  }

  render({token, name, i, active, parts}) {
    const nats = surprise(token);
    const marks = ["token", source(token), active && "active", parts && "parts", token.cut && "cut", token.special && "special"];
    if (/^\s*\n\s*$/.test(token.piece)) marks.push("newline");
    return html`<span
      id="${name}-t${i}"
      data-t=${i}
      role="option"
      aria-selected=${active ? "true" : "false"}
      aria-label=${spoken(token, active)}
      class=${marks.filter(Boolean).join(" ")}
      style=${{"--heat": `${Math.round(heat(nats) * 100)}%`}}
      >${token.special ? "■" : token.piece === "" ? "·" : token.piece}</span
    >`;
  }
}

/** "the", probability 12 %, accepted draft */
function spoken(token, active) {
  const parts = [token.special ? "end of text" : `“${token.text}”`];
  if (typeof token.logp === "number") parts.push(`probability ${percent(Math.exp(token.logp))}`);
  parts.push(SAID[source(token)]);
  if (active && token.top?.length) parts.push("likeliest: " + token.top.map((one) => `${shown(one.text ?? "", one.id)} ${percent(Math.exp(one.logp))}`).join(", "));
  return parts.join(", ");
}

function named({text, id}) {
  const seen = text === null || text === undefined ? `#${id}` : shown(text, id);
  return seen.startsWith("‹") ? `end ${seen}` : seen;
}

export function percent(share) {
  const value = share * 100;
  if (value >= 99.95) return "100 %";
  if (value >= 10) return `${value.toFixed(1)} %`;
  return value >= 0.01 ? `${value.toPrecision(2)} %` : "< 0.01 %";
}

/** What the model would have said instead, beside the token; stays while the pointer is on it. */
function Alternatives({token, anchor, onEnter, onLeave}) {
  const box = useRef(null);
  const place = () => {
    const from = anchor();
    if (!from || !box.current) return;
    const near = from.getClientRects()[0] ?? from.getBoundingClientRect();
    const own = box.current.getBoundingClientRect();
    const room = document.documentElement;
    const left = Math.max(8, Math.min(near.left, room.clientWidth - own.width - 8));
    const above = near.bottom + own.height + 8 > room.clientHeight && near.top - own.height - 4 > 0;
    box.current.style.left = `${left}px`;
    box.current.style.top = `${above ? near.top - own.height - 4 : near.bottom + 4}px`;
  };
  useLayoutEffect(place);
  useEffect(() => {
    addEventListener("scroll", place, true);
    return () => removeEventListener("scroll", place, true);
  });
  const nats = surprise(token);
  const rows = [...(token.top ?? [])];
  const chosen = rows.findIndex((one) => (token.id !== null && one.id !== null ? one.id === token.id : one.text === token.text));
  if (chosen < 0 && nats !== null) rows.push({id: token.id, text: token.text, logp: token.logp, outside: true});
  return html`<div class="alternatives" ref=${box} onPointerEnter=${onEnter} onPointerLeave=${onLeave}>
    <p>
      <code>${named(token)}</code>
      <span class="soft">${token.id !== null && token.id !== undefined ? `id ${token.id}` : ""}</span>
    </p>
    ${rows.length > 0 &&
    html`<table>
      <caption class="unseen">The likeliest tokens of the raw model</caption>
      <tbody>
        ${rows.map(
          (one, i) => html`<tr class=${i === chosen || one.outside ? "chosen" : ""}>
            <th scope="row"><code>${named(one)}</code></th>
            <td class="bar"><i style=${{width: `${Math.max(Math.exp(one.logp) * 100, 0.5)}%`}}></i></td>
            <td>${percent(Math.exp(one.logp))}</td>
          </tr>`,
        )}
      </tbody>
    </table>`}
    <p class="soft">
      ${SAID[source(token)]}${token.drafter ? ` of ${token.drafter}` : ""}${token.step !== null ? `, step ${token.step + 1}` : ""}${token.cut ? "; behind the stop string" : ""}
      <br />
      ${nats === null ? "no log-probability" : `surprise ${nats.toFixed(2)} nats`}${typeof token.entropy === "number" ? `, entropy ${token.entropy.toFixed(2)}` : ""}${token.kept > 0 ? `, constraint left ${percent(Math.exp(-token.kept))}` : ""}
    </p>
  </div>`;
}
