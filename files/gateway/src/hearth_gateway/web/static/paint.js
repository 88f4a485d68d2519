// @ts-check

/**
 * Decides when a growing text is drawn: the first piece at once, later ones at most once a frame.
 * Drawing every piece would make a fast model slow; waiting for the first frame would feel slow.
 */
export class Painter {
  #pending = false;
  #first = true;

  /** @param {() => void} draw */
  constructor(draw) {
    this.draw = draw;
  }

  /** There is more to draw. */
  touch() {
    if (this.#first) {
      this.#first = false;
      this.draw();
      return;
    }
    if (this.#pending) return;
    this.#pending = true;
    const run = () => {
      if (!this.#pending) return;
      this.#pending = false;
      this.draw();
    };
    // Hidden tabs get no frames; their text still has to be there when the person comes back.
    if (document.hidden) setTimeout(run, 250);
    else requestAnimationFrame(run);
  }

  /** Draw what is left, now. */
  flush() {
    this.#pending = false;
    this.draw();
  }
}
