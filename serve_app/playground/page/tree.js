// A step's token tree as a picture: where nodes and edges lie. Depth runs to the right, each leaf has a line of its own,
// and the accepted path comes first, so it is the straight line on top. Pure.

export const LINE = 26;
const SIGN = 7.4; // width of a sign of the label, px; the font is monospaced
const PAD = 9;
const GAP = 22;
const LONGEST = 14;

/** {width, height, nodes: [{node, x, y, width, label, state}], edges: [{d, state}]}
 *  state: "root" (pending before the step), "accepted", "rejected", "own" (the model's token, not in the draft) */
export function layout(step, own) {
  const {parents, tokens, texts} = step;
  const accepted = new Set(step.path);
  const nodes = tokens.map((id, node) => ({
    node,
    id,
    parent: parents[node],
    text: texts?.[node],
    state: node === 0 ? "root" : accepted.has(node) ? "accepted" : "rejected",
  }));
  const last = step.path.at(-1) ?? 0;
  const drafted = own && nodes.find((one) => one.parent === last && one.id === own.id); // the text ended on a drafted token
  if (drafted) drafted.state = "own";
  else if (own) nodes.push({node: nodes.length, id: own.id, parent: last, text: own.text, state: "own"});
  const children = nodes.map(() => []);
  for (const one of nodes) if (one.parent >= 0) children[one.parent].push(one);
  const first = {accepted: 0, own: 1, rejected: 2};
  for (const some of children) some.sort((a, b) => first[a.state] - first[b.state] || a.node - b.node);

  const widths = [];
  const depths = [];
  for (const one of nodes) {
    one.label = label(one.text, one.id);
    one.width = [...one.label].length * SIGN + 2 * PAD;
    one.depth = one.parent < 0 ? 0 : depths[one.parent] + 1;
    depths.push(one.depth);
    widths[one.depth] = Math.max(widths[one.depth] ?? 0, one.width);
  }
  const left = widths.map((_, depth) => widths.slice(0, depth).reduce((sum, width) => sum + width + GAP, 2));
  let lines = 0;
  const place = (one) => {
    one.x = left[one.depth];
    const below = children[one.node];
    one.y = below.length ? Math.min(...below.map(place)) : LINE / 2 + LINE * lines++;
    return one.y;
  };
  place(nodes[0]);
  const edges = nodes.slice(1).map((one) => ({state: one.state, d: edge(nodes[one.parent], one)}));
  return {width: Math.ceil(left.at(-1) + widths.at(-1) + 2), height: lines * LINE + 2, nodes, edges};
}

function edge(from, to) {
  const x = from.x + from.width;
  if (from.y === to.y) return `M${x} ${from.y}H${to.x}`;
  const turn = to.x - GAP / 2;
  return `M${x} ${from.y}C${turn} ${from.y} ${turn} ${to.y} ${to.x} ${to.y}`;
}

/** A token in a few signs: blanks and line ends visible, ids where the text is not known. */
export function label(text, id) {
  if (text === null || text === undefined) return `#${id}`;
  const seen = shown(text, id);
  const signs = [...seen];
  return signs.length > LONGEST ? signs.slice(0, LONGEST - 1).join("") + "…" : seen;
}

/** A token's text as the server spells it: `token:4` has no characters, `bytes:\xe2` is a part of one. */
export function shown(text, id) {
  if (text === "" || /^token:\d+$/.test(text)) return `‹${id ?? text.slice(6)}›`;
  return text.startsWith("bytes:") ? text.slice(6) : visible(text);
}

/** Blanks and line ends made visible. */
export function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** The step in a sentence, for who does not see the picture. */
export function describe(step, own) {
  const drafted = step.tokens.length - 1;
  const accepted = step.path.length - 1;
  const words = step.path.slice(1).map((node) => `“${label(step.texts?.[node], step.tokens[node])}”`);
  const made = own ? `, then the model's own “${label(own.text, own.id)}”` : "";
  if (!drafted) return `No draft: the model chose “${own ? label(own.text, own.id) : "?"}”.`;
  const who = step.drafter ? `${step.drafter} drafted` : "Known ahead:";
  return `${who} ${drafted} ${drafted === 1 ? "token" : "tokens"}, ${accepted} accepted${words.length ? `: ${words.join(" ")}` : ""}${made}.`;
}
