import { expect, test } from 'vitest'
import { TICKS, move, pairKit, ticksOf } from './kit.ts'
test('dbg', async () => {
  const kit = await pairKit()
  try {
    const { a, b } = kit
    for (let i = 0; i < 4; i++) {
      const { request, vm } = await kit.start(a)
      await kit.sh(a, vm, TICKS)
      await move(kit, request, a, b, { tls: false })
      for (let j = 0; j < 6; j++) {
        const t0 = performance.now()
        const r = await kit.sh(b, vm, 'echo ok').catch((e: Error) => e.message.slice(0, 60))
        console.log(
          i,
          j,
          r,
          Math.round(performance.now() - t0),
          'ticks',
          ticksOf((await b.serialLog(vm, 200)).text)
            .slice(-2)
            .join(' '),
        )
        await new Promise((r2) => setTimeout(r2, 300))
      }
      console.log(
        (await b.serialLog(vm, 3000)).text
          .split('\n')
          .filter((l) => !l.includes('tick'))
          .join('|'),
      )
      await b.stop(vm)
    }
    expect(1).toBe(1)
  } finally {
    await kit.close()
  }
}, 220_000)
