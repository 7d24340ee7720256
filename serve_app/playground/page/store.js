// One state for the page. Runs change many times a second in place; the page is drawn at most once a frame.

import {useEffect, useState} from "./html.js";

export class Store {
  #listeners = new Set();
  #frame = 0;

  constructor(state) {
    this.state = state;
  }

  /** Replace some keys and tell everybody, in the next frame. */
  set(patch) {
    this.state = {...this.state, ...patch};
    this.touch();
  }

  /** Something inside the state changed. A hidden page gets no frames, so there it is told by a timer. */
  touch() {
    if (this.#frame) return;
    const tell = () => {
      this.#frame = 0;
      for (const listener of this.#listeners) listener();
    };
    this.#frame = document.hidden ? setTimeout(tell, 250) : requestAnimationFrame(tell);
  }

  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

/** The state, and a new drawing whenever it changes. */
export function useStore(store) {
  const [, redraw] = useState(0);
  useEffect(() => store.subscribe(() => redraw((n) => n + 1)), [store]);
  return store.state;
}
