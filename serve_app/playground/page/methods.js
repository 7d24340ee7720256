// Methods as a form: cards of a room, each with the options of its schema.

import {html} from "./html.js";
import {Field} from "./fields.js";
import {fieldsOf, freshCard} from "./schema.js";
import {KEYS, SINGLE} from "./settings.js";

const TITLES = {
  samplers: "Sampler chain",
  drafters: "Drafter",
  searches: "Search",
  monitors: "Monitors",
  interventions: "Interventions",
};
const EMPTY = {samplers: "No sampler: the model's own law, temperature 1."};

/** All rooms that have methods. methods: rows of /v1/methods; engine: of the side's model, or "" */
export function Rooms({methods, chosen, onChange, scope, problem, engine}) {
  const rooms = Object.keys(KEYS).filter((room) => methods.some((one) => one.room === room));
  const change = (room, cards) => onChange({...chosen, [room]: cards});
  return rooms.map((room) => {
    const known = methods.filter((one) => one.room === room);
    const props = {room, known, cards: chosen[room] ?? [], path: `decoding.${KEYS[room]}`, scope, problem, engine};
    return html`<fieldset key=${room} class="room" data-path="${scope}:${props.path}" tabindex="-1">
      <legend>${TITLES[room] ?? room}</legend>
      ${SINGLE.has(room)
        ? html`<${One} ...${props} onChange=${(cards) => change(room, cards)} />`
        : html`<${Chain} ...${props} onChange=${(cards) => change(room, cards)} />`}
    </fieldset>`;
  });
}

/** A list of cards, applied in order. names: only these, where given. */
export function Chain({room, known, cards, onChange, path, scope, problem, engine, names}) {
  const offered = known.filter((one) => !names || names.includes(one.name));
  const put = (i, card) => onChange(cards.map((one, j) => (j === i ? card : one)));
  const move = (i, by) => {
    const out = [...cards];
    [out[i], out[i + by]] = [out[i + by], out[i]];
    onChange(out);
  };
  return html`
    ${!cards.length && EMPTY[room] && html`<p class="soft">${EMPTY[room]}</p>`}
    <ol class="cards">
      ${cards.map((card, i) => {
        const name = card.name;
        return html`<li key=${`${i}-${name}`}>
          <div class="cardhead">
            <b>${name}</b>
            <span class="tools">
              <button type="button" class="small" disabled=${i === 0} aria-label="${name}: earlier" title="earlier" onClick=${() => move(i, -1)}>↑</button>
              <button type="button" class="small" disabled=${i === cards.length - 1} aria-label="${name}: later" title="later" onClick=${() => move(i, 1)}>↓</button>
              <button type="button" class="small" aria-label="remove ${name}" title="remove" onClick=${() => onChange(cards.filter((_, j) => j !== i))}>✕</button>
            </span>
          </div>
          <${Card} ...${{known, card, scope, problem}} path=${`${path}[${i}]`} onChange=${(one) => put(i, one)} />
        </li>`;
      })}
    </ol>
    <label class="add">
      <span>Add</span>
      <select
        value=""
        data-path="${scope}:${path}+"
        onChange=${(e) => {
          const method = known.find((one) => one.name === e.target.value);
          e.target.value = "";
          if (method) onChange([...cards, freshCard(method)]);
        }}
      >
        <option value="">a method …</option>
        <${Names} offered=${offered} engine=${engine} />
      </select>
    </label>
  `;
}

/** One card or none. */
function One({room, known, cards, onChange, path, scope, problem, engine}) {
  const [card] = cards;
  return html`
    <label class="add">
      <span class="unseen">${TITLES[room]}</span>
      <select
        data-path="${scope}:${path}.name"
        onChange=${(e) => {
          const method = known.find((one) => one.name === e.target.value);
          onChange(method ? [freshCard(method)] : []);
        }}
      >
        <option value="" selected=${!card}>none</option>
        <${Names} offered=${known} engine=${engine} chosen=${card?.name} />
        ${card && !known.some((one) => one.name === card.name) && html`<option selected value=${card.name}>${card.name} (not on this server)</option>`}
      </select>
    </label>
    ${card && html`<${Card} ...${{known, card, scope, problem, path}} onChange=${(one) => onChange([one])} />`}
  `;
}

function Names({offered, engine, chosen}) {
  return offered.map((one) => {
    const fits = !engine || one.engines.includes(engine);
    return html`<option value=${one.name} selected=${chosen === one.name} disabled=${!fits} title=${one.summary}>
      ${one.name}${fits ? "" : ` (not on ${engine})`}
    </option>`;
  });
}

/** A card's options. A message for the card itself, or for an option that the schema does not have, stands on top. */
function Card({known, card, onChange, path, scope, problem}) {
  const method = known.find((one) => one.name === card.name);
  const fields = method ? fieldsOf(method) : [];
  const own = problem?.field?.startsWith(path) && !fields.some((field) => problem.field.startsWith(`${path}.${field.name}`));
  const set = (name, value) => {
    const {[name]: _, ...rest} = card;
    onChange(value === undefined ? rest : {...rest, [name]: value});
  };
  return html`
    <div class="options" data-path="${scope}:${path}" tabindex="-1">
      <p class="soft about">${method ? method.summary : "This server has no such method."}</p>
      ${own && html`<p class="wrong">${problem.message}</p>`}
      ${fields.map((field) =>
        field.kind === "cards"
          ? html`<fieldset key=${field.name} class="room nested" data-path="${scope}:${path}.${field.name}" tabindex="-1">
              <legend>${field.name}</legend>
              <p class="soft">${field.description}</p>
              <${Chain}
                ...${{room: "", known, scope, problem, names: field.names}}
                path=${`${path}.${field.name}`}
                cards=${(card[field.name] ?? []).map((one) => (typeof one === "string" ? {name: one} : one))}
                onChange=${(cards) => set(field.name, cards.length ? cards : undefined)}
              />
            </fieldset>`
          : html`<${Field} key=${field.name} ...${{field, scope, problem}} path=${`${path}.${field.name}`} value=${card[field.name]} onChange=${(value) => set(field.name, value)} />`,
      )}
    </div>
  `;
}
