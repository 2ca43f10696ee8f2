/** The hidden command that a data-plane process is started with. */
export const workerCommand = 'data-plane-worker';
