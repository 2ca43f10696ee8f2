/** Of what a command prints so much is kept. */
const maxKeptBytes = 4096;
/** Beyond this a command counts as one that prints without end. */
const maxPrintedBytes = 1024 * 1024;
const headerBytes = 8;
const longestPid = 10;

/**
 * The two outputs of a command, as the engine sends them: frames with a header of eight bytes (Docker Engine API,
 * ContainerAttach, "Stream format"). The command's first line is its process id.
 */
export class ExecOutput {
  readonly #onBegun: () => void;
  readonly #onFlood: () => void;
  readonly #header = Buffer.alloc(headerBytes);
  #headerLength = 0;
  #frameLeft = 0;
  #firstLine: string | undefined = '';
  #pid: number | undefined;
  readonly #kept: Buffer[] = [];
  #keptBytes = 0;
  #printedBytes = 0;
  #isBroken = false;

  constructor(onBegun: () => void, onFlood: () => void) {
    this.#onBegun = onBegun;
    this.#onFlood = onFlood;
  }

  /** In the container's own numbering; undefined while it is not known. */
  get pid(): number | undefined {
    return this.#pid;
  }

  /** The engine sent something else than frames. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** The beginning of what it printed. */
  get text(): string {
    return (this.#pid === undefined ? (this.#firstLine ?? '') : '') + Buffer.concat(this.#kept).toString('utf8');
  }

  push(bytes: Buffer): void {
    let rest = bytes;
    while (rest.length > 0 && !this.#isBroken) {
      if (this.#frameLeft > 0) {
        const part = rest.subarray(0, this.#frameLeft);
        this.#frameLeft -= part.length;
        rest = rest.subarray(part.length);
        this.#take(part);
      } else {
        const part = rest.subarray(0, headerBytes - this.#headerLength);
        part.copy(this.#header, this.#headerLength);
        this.#headerLength += part.length;
        rest = rest.subarray(part.length);
        if (this.#headerLength === headerBytes) this.#beginFrame();
      }
    }
  }

  #beginFrame(): void {
    const [stream = 255, ...zeros] = this.#header.subarray(0, 4);
    this.#headerLength = 0;
    this.#frameLeft = this.#header.readUInt32BE(4);
    if (stream > 2 || zeros.some((byte) => byte !== 0)) this.#isBroken = true;
  }

  #take(part: Buffer): void {
    const before = this.#printedBytes;
    this.#printedBytes += part.length;
    this.#keep(this.#firstLine === undefined || this.#pid !== undefined ? part : this.#takePid(part));
    if (before <= maxPrintedBytes && this.#printedBytes > maxPrintedBytes) this.#onFlood();
  }

  /** Reads the first line; gives what belongs to the output. */
  #takePid(part: Buffer): Buffer {
    const text = (this.#firstLine ?? '') + part.subarray(0, longestPid + 1).toString('latin1');
    const end = text.indexOf('\n');
    if (end < 0 && /^\d*$/.test(text) && text.length <= longestPid) {
      this.#firstLine = text;
      return Buffer.alloc(0);
    }
    const digits = end < 0 ? '' : text.slice(0, end);
    const taken = end + 1 - (this.#firstLine ?? '').length;
    if (/^\d+$/.test(digits)) {
      this.#pid = Number(digits);
      this.#firstLine = undefined;
      this.#onBegun();
      return part.subarray(taken);
    }
    // Not the command's word but the engine's, on why it does not run.
    const whole = Buffer.concat([Buffer.from(this.#firstLine ?? '', 'latin1'), part]);
    this.#firstLine = undefined;
    return whole;
  }

  #keep(part: Buffer): void {
    const kept = part.subarray(0, maxKeptBytes - this.#keptBytes);
    if (kept.length === 0) return;
    // A copy, because what it is a part of is larger.
    this.#kept.push(Buffer.from(kept));
    this.#keptBytes += kept.length;
  }
}
