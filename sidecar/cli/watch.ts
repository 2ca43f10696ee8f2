import { setTimeout as sleep } from 'node:timers/promises';
import { Backoff } from '../../src/base/backoff.ts';
import type { AdminClient } from './admin-client.ts';
import { showFailure } from './failure.ts';
import { wrap } from './table.ts';
import type { Terminal } from './terminal.ts';

/** At most five redraws a second. */
const leastBetweenMs = 200;
/** Times are relative: they are redrawn even when nothing else changed. */
const tickMs = 5000;

/** Redraws a frame of lines in place. Lines that do not fit the screen are counted instead of shown. */
export class Screen {
  readonly #terminal: Terminal;
  /** Line ends of the frame that is shown: so far its beginning is above. */
  #above = 0;
  #last = '';

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  open(): void {
    // No cursor, and no wrapping: a line is a row, whatever happens to the window.
    if (this.#terminal.interactive) this.#terminal.write('\u001b[?25l\u001b[?7l');
  }

  close(): void {
    if (!this.#terminal.interactive) return;
    const end = this.#last !== '' && this.#above === 0 ? '\n' : '';
    this.#terminal.write(`${end}\u001b[?7h\u001b[?25h`);
  }

  draw(lines: readonly string[]): void {
    const text = lines.join('\n');
    if (text === this.#last) return;
    this.#last = text;
    if (!this.#terminal.interactive) {
      this.#terminal.lines(lines);
      return;
    }
    const { rows } = this.#terminal;
    const room = Math.max(1, rows - 1);
    const hidden = lines.length - room;
    const rest = room > 1 ? [` ${hidden + 1} more lines`] : [];
    const shown = hidden > 0 ? [...lines.slice(0, Math.max(1, room - 1)), ...rest] : lines;
    // On a single row the end of a line would push it out of sight.
    const end = rows > 1 ? '\n' : '';
    // One write a frame: each line is overwritten and its rest cleared, so that nothing flickers.
    const up = this.#above > 0 ? `\u001b[${this.#above}A` : '';
    this.#terminal.write(`${up}\r${shown.map((line) => `${line}\u001b[K${end}`).join('')}\u001b[J`);
    this.#above = shown.length * end.length;
  }
}

/**
 * Keeps a frame current until aborted: `frame` is asked again after each change that the sidecar tells, and now and
 * then. The first failure throws; later ones are shown above the last frame while it goes on trying. `everyMs`: so often
 * at least, whoever looks, for figures whose changes the sidecar does not tell.
 */
export async function watch(
  client: AdminClient,
  terminal: Terminal,
  frame: () => Promise<string[]>,
  signal: AbortSignal,
  everyMs?: number,
): Promise<void> {
  let last = await frame();
  let told = '';
  const changed = new Wakeup();
  const screen = new Screen(terminal);
  const following = follow(client, changed, signal);
  screen.open();
  try {
    screen.draw(last);
    while (!signal.aborted) {
      await changed.wait(everyMs ?? (terminal.interactive ? tickMs : undefined), signal);
      if (signal.aborted) break;
      try {
        last = await frame();
        told = '';
        screen.draw(last);
      } catch (error) {
        if (signal.aborted) break;
        const { line } = showFailure(error, 'not current');
        const fault = wrap(line, terminal.view().width - 1).map((part) => ` ${terminal.style.paint(part, 'red')}`);
        // On top, where it is seen also when the frame is cut.
        if (terminal.interactive) screen.draw([...fault, ...last]);
        else if (told !== line) terminal.error(line);
        told = line;
        changed.wakeIn(1000);
      }
      await sleep(leastBetweenMs, undefined, { signal }).catch(() => undefined);
    }
  } finally {
    screen.close();
    changed.cancel();
    await following;
  }
}

/** Wakes whenever the sidecar tells of a change, and connects again when the stream ends. */
async function follow(client: AdminClient, changed: Wakeup, signal: AbortSignal): Promise<void> {
  const backoff = new Backoff(500, 5000);
  while (!signal.aborted) {
    try {
      for await (const _ of client.changes(signal)) {
        backoff.reset();
        changed.wake();
      }
    } catch {
      // The frame's own request meets the same fault and shows it.
    }
    changed.wake();
    await sleep(backoff.nextMs(), undefined, { signal }).catch(() => undefined);
  }
}

/** Remembers one wake-up while nobody waits. */
class Wakeup {
  #pending = false;
  #resolve: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;

  wake(): void {
    this.#pending = true;
    this.#resolve?.();
  }

  wakeIn(delayMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.wake(), delayMs);
  }

  cancel(): void {
    clearTimeout(this.#timer);
  }

  async wait(timeoutMs: number | undefined, signal: AbortSignal): Promise<void> {
    if (!this.#pending && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const done = (): void => {
          clearTimeout(timer);
          signal.removeEventListener('abort', done);
          resolve();
        };
        const timer = timeoutMs === undefined ? undefined : setTimeout(done, timeoutMs);
        this.#resolve = done;
        signal.addEventListener('abort', done, { once: true });
      });
    }
    this.#resolve = undefined;
    this.#pending = false;
  }
}
