// A method's option schema (pydantic's JSON Schema) as form fields, and what a person typed as values. Pure.
//
// A field: {name, kind, required, fallback, description, range, choices, item, variants}
// kind: integer number boolean string enum list map cards union json
//
// Nothing is refused here: what cannot be read as the kind goes to the server as it was typed, and the server's own
// message comes back to the field. So there is one set of rules.

/** Fields of a method, in the schema's order. `among`: names for an option that chooses among methods of its room. */
export function fieldsOf(method) {
  const schema = method.options ?? {};
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, part]) => {
    const field = {name, required: required.has(name), ...kindOf(part, schema.$defs ?? {})};
    const cards = name === "among" && Array.isArray(method.among);
    return cards ? {...field, kind: "cards", room: method.room, names: method.among} : field;
  });
}

/** What kind of value a part of a schema wants. */
export function kindOf(part, defs = {}) {
  const own = {fallback: part.default, description: part.description ?? "", examples: part.examples ?? []};
  const target = resolve(part, defs);
  const variants = (target.anyOf ?? target.oneOf)?.map((one) => resolve(one, defs));
  if (variants) {
    const some = variants.filter((one) => one.type !== "null");
    if (some.length === 1) return {...kindOf(some[0], defs), ...own, optional: true};
    return {...own, kind: "union", variants: some.map((one) => kindOf(one, defs))};
  }
  if (target.enum || "const" in target) return {...own, kind: "enum", choices: target.enum ?? [target.const]};
  switch (target.type) {
    case "integer":
    case "number":
      return {...own, kind: target.type, range: rangeOf(target)};
    case "boolean":
    case "string":
      return {...own, kind: target.type};
    case "array":
      return {...own, kind: "list", item: kindOf(target.items ?? {}, defs)};
    case "object":
      if (typeof target.additionalProperties === "object" && !target.properties)
        return {...own, kind: "map", item: kindOf(target.additionalProperties, defs)};
  }
  return {...own, kind: "json"};
}

function resolve(part, defs) {
  let at = part;
  for (let hops = 0; at.$ref && hops < 16; hops++) at = defs[at.$ref.split("/").pop()] ?? {};
  if (at.allOf?.length === 1) return {...resolve(at.allOf[0], defs), ...at, allOf: undefined};
  return at;
}

function rangeOf(part) {
  const names = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];
  return Object.fromEntries(names.filter((name) => name in part).map((name) => [name, part[name]]));
}

const NARROW = "\u00a0"; // a range stays on one line

/** "0 < x ≤ 1", "≥ 1", or "" */
export function rangeText(range = {}) {
  const low = range.exclusiveMinimum ?? range.minimum;
  const high = range.exclusiveMaximum ?? range.maximum;
  const below = range.exclusiveMinimum === undefined ? "≤" : "<";
  const above = range.exclusiveMaximum === undefined ? "≤" : "<";
  if (low !== undefined && high !== undefined) return [short(low), below, "x", above, short(high)].join(NARROW);
  if (low !== undefined) return (below === "≤" ? "≥" : ">") + NARROW + short(low);
  return high === undefined ? "" : above + NARROW + short(high);
}

function short(number) {
  const power = Math.log2(number);
  return number >= 1 << 16 && Number.isInteger(power) ? `2^${power}` : String(number);
}

/** What was typed as a value; undefined when nothing was; the text itself when it is not of this kind. */
export function read(field, typed) {
  const text = String(typed ?? "");
  if (field.kind === "string") return text === "" ? undefined : unescaped(text);
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  switch (field.kind) {
    case "integer":
      return /^[+-]?\d+$/.test(trimmed) && Number.isSafeInteger(Number(trimmed)) ? Number(trimmed) : text;
    case "number":
      return Number.isFinite(Number(trimmed)) ? Number(trimmed) : text;
    case "boolean":
      return trimmed === "true" ? true : trimmed === "false" ? false : text;
    case "enum":
      return field.choices.find((one) => String(one) === text) ?? text;
    case "list":
      return readList(field, trimmed);
    case "map":
    case "json":
      return readJson(trimmed);
    case "union":
      return readUnion(field, text);
  }
  return text;
}

function readList(field, text) {
  if (text.startsWith("[")) return readJson(text);
  return text.split(",").map((part) => read(field.item, part.trim())).filter((one) => one !== undefined);
}

function readUnion(field, text) {
  for (const variant of field.variants) {
    const value = read(variant, text);
    if (fits(variant, value)) return value;
  }
  const parsed = readJson(text.trim());
  return parsed;
}

function fits(field, value) {
  switch (field.kind) {
    case "enum":
      return field.choices.includes(value);
    case "integer":
      return Number.isInteger(value);
    case "number":
      return typeof value === "number";
    case "boolean":
      return typeof value === "boolean";
    case "list":
      return Array.isArray(value) && value.every((one) => fits(field.item, one));
    case "map":
      return value !== null && typeof value === "object" && !Array.isArray(value);
    case "string":
      return typeof value === "string" && !/^[[{]/.test(value.trim());
  }
  return false;
}

function readJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** A value as it is typed. */
export function write(field, value) {
  if (value === undefined) return "";
  if (field.kind === "string" && typeof value === "string") return escaped(value);
  if (typeof value === "string") return value;
  if (field.kind === "list" && Array.isArray(value) && value.every((one) => typeof one === "number")) return value.join(", ");
  if (field.kind === "union" && Array.isArray(value) && value.every((one) => typeof one === "number")) return value.join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const ESCAPES = {n: "\n", t: "\t", r: "\r", "\\": "\\"};

/** Line ends and tabs are typed as \n and \t: fields have one line. */
export function unescaped(text) {
  return text.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);
}

export function escaped(text) {
  return text.replace(/[\\\n\t\r]/g, (sign) => "\\" + Object.keys(ESCAPES).find((one) => ESCAPES[one] === sign));
}

/** A card with the options that must be there, where an example or a bound says what they could be. */
export function freshCard(method) {
  const card = {name: method.name};
  for (const field of fieldsOf(method)) {
    if (!field.required) continue;
    const value = field.examples?.[0] ?? likely(field);
    if (value !== undefined) card[field.name] = value;
  }
  return card;
}

/** A start value for an option without a default. The well-known ones are what papers and other servers use. */
function likely(field) {
  if (field.kind === "integer" && field.name === "k") return 40;
  if (field.kind === "number" && field.name === "p") return field.range.exclusiveMinimum === 0 ? 0.9 : 0.05;
  if (field.kind === "number" && field.name === "epsilon") return 0.0006;
  if (field.kind === "enum") return field.choices[0];
  if (field.kind === "integer" || field.kind === "number") return field.range.minimum;
  return undefined;
}
