/**
 * What QEMU answers; undefined where an event said something of it meanwhile (`told` counts them): the answer, read later, may be older.
 * Both may come in one chunk, and whoever waits for the answer has its turn only after all of it.
 */
export async function unlessTold<T>(told: () => number, ask: () => Promise<T>): Promise<T | undefined> {
  const before = told()
  const answer = await ask()
  return told() === before ? answer : undefined
}
