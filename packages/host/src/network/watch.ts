/** Looks now and then whether something still is as it was made, and mends it; less often while mending is in vain. */
import { toFault } from '@wadah/api/fault'

const MOST_MS = 60_000

export type Watch = { start(): void; stop(): void }

/** `look` is cheap and says what is wrong; `least_ms` 0 never looks. The timer keeps no process alive. */
export function createWatch(options: {
  least_ms: number
  look: () => Promise<string | undefined>
  mend: () => Promise<void>
  log: (line: string) => void
}): Watch {
  const { least_ms, look, mend, log } = options
  let timer: NodeJS.Timeout | undefined
  let every = least_ms

  async function once(): Promise<void> {
    const reason = await look()
    if (reason === undefined) {
      every = least_ms
      return
    }
    if (every === least_ms) log(`${reason}; putting it right`)
    every = Math.min(every * 2, MOST_MS)
    await mend()
  }
  function again(): void {
    timer = setTimeout(() => {
      once()
        .catch((error: unknown) => log(`looking after networks failed: ${toFault(error).detail}`))
        .finally(() => {
          if (timer !== undefined) again()
        })
    }, every)
    timer.unref()
  }
  return {
    start() {
      if (timer === undefined && least_ms > 0) again()
    },
    stop() {
      clearTimeout(timer)
      timer = undefined
    },
  }
}
