// Places to begin: comparisons that show something on any model. Only those are offered whose methods the server has.

const WORDS = "Repeat this list three times, without changes: red apple, green pear, blue plum, yellow lemon.";

export const EXAMPLES = [
  {
    title: "A draft changes the speed, not the text",
    about: "the same seed with and without a drafter: one text, fewer steps",
    prompt: WORDS,
    decoding: {max_tokens: 96, seed: 7},
    sides: [{samplers: [{name: "greedy"}]}, {samplers: [{name: "greedy"}], drafters: [{name: "ngram"}]}],
  },
  {
    title: "Trees of drafts",
    about: "Token Recycling proposes many continuations at once",
    prompt: "Write a short poem about the sea, the sun and the sea again.",
    decoding: {max_tokens: 96, seed: 3},
    sides: [{samplers: [{name: "temperature", value: 0.6}]}, {samplers: [{name: "temperature", value: 0.6}], drafters: [{name: "token_recycling"}]}],
  },
  {
    title: "Two ways to cut the tail",
    about: "top-p against min-p, at the same noise: see where they part",
    prompt: "Tell me something surprising about owls.",
    decoding: {max_tokens: 96, seed: 11},
    sides: [
      {samplers: [{name: "temperature", value: 1.2}, {name: "top_p", p: 0.9}]},
      {samplers: [{name: "temperature", value: 1.2}, {name: "min_p", p: 0.1}]},
    ],
  },
];

/** Those that this server can run. methods: rows of /v1/methods */
export function possible(methods) {
  const has = (room, card) => methods.some((one) => one.room === room && one.name === card.name);
  return EXAMPLES.filter((one) => one.sides.every((side) => Object.entries(side).every(([room, cards]) => cards.every((card) => has(room, card)))));
}

/** An example as settings; models and colours stay. */
export function settingsOf(example, settings) {
  const {prompt, decoding} = example;
  const sides = settings.sides.map((side, i) => ({...side, methods: example.sides[i]}));
  return {...settings, prompt, decoding, system: "", noise_id: "", compare: true, sides};
}
