/** A timer of Node's that is set for longer ends at once. */
export const longestTimerMs = 2 ** 31 - 1;
