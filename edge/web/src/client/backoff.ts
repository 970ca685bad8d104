/** Exponential back-off with full jitter: after a restart of the server its clients do not come back in step. */
export class Backoff {
  #attempt = 0;

  constructor(
    private readonly baseMs = 500,
    private readonly capMs = 20_000,
    private readonly random: () => number = Math.random,
  ) {}

  /** How many delays were handed out since the last reset. */
  get attempt(): number {
    return this.#attempt;
  }

  /** The next delay: between 0 and the ceiling of this attempt, on top of what the server asked for. */
  next(floorMs = 0): number {
    const ceiling = Math.min(this.capMs, this.baseMs * 2 ** Math.min(this.#attempt, 30));
    this.#attempt += 1;
    return floorMs + this.random() * ceiling;
  }

  reset(): void {
    this.#attempt = 0;
  }
}
