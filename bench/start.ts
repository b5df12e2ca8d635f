/** From `POST …/start` to a running QEMU, against the very same argv spawned bare (and `virsh start` where libvirt runs). */
import { recipeOf, spawnBare } from './bare.ts'
import { type Bench, TINY, removeVms, timed, tinyImage } from './kit.ts'
import { type Guest, libvirtGuest } from './libvirt.ts'
import { compare } from './report.ts'

export const start: Bench = {
  name: 'start',
  async run(daemon, { quick }) {
    const rounds = quick ? 5 : 20
    await tinyImage(daemon)
    await daemon.job('POST', '/v1/vms', { name: 's', ...TINY })
    let seen = 0
    const off = await daemon.events('vm', (event) => {
      if (event.state === 'running') seen ||= performance.now()
    })
    const raw: Record<string, number[]> = { running: [], answer: [], bare: [], virsh: [] }
    const notes: string[] = []
    let libvirt: Guest | undefined
    try {
      await daemon.job('POST', '/v1/vms/s/start')
      const { pid } = (await daemon.must('GET', '/v1/vms/s')).status
      const recipe = recipeOf(pid)
      libvirt = await libvirtGuest(recipe, daemon.scratch).catch((error: Error) => {
        notes.push(`libvirt was not compared: ${error.message}`)
        return undefined
      })
      await daemon.job('POST', '/v1/vms/s/stop')
      const ours = async () => {
        seen = 0
        const begun = performance.now()
        const [ms] = await timed(() => daemon.job('POST', '/v1/vms/s/start'))
        // The event may come a little after the answer.
        for (let i = 0; i < 100 && seen === 0; i++) await new Promise((r) => setTimeout(r, 1))
        raw['answer']?.push(ms)
        raw['running']?.push(Math.min(ms, seen === 0 ? ms : seen - begun))
        await daemon.job('POST', '/v1/vms/s/stop')
      }
      const bare = async (i: number) => {
        const [ms, guest] = await spawnBare(recipe, `${daemon.scratch}/s${i}`)
        raw['bare']?.push(ms)
        await guest.end()
      }
      // One of each for warming up, not counted.
      await ours()
      await bare(-1)
      for (const samples of Object.values(raw)) samples.length = 0
      for (let i = 0; i < rounds; i++) {
        // Whoever goes first changes from round to round.
        if (i % 2 === 0) await ours()
        await bare(i)
        if (i % 2 === 1) await ours()
        if (libvirt) {
          raw['virsh']?.push(await libvirt.start())
          await libvirt.stop()
        }
      }
    } finally {
      off()
      await libvirt?.remove()
      await removeVms(daemon, 's')
    }
    const other = { what: 'same argv, bare spawn + cont', samples: raw['bare'] ?? [] }
    const rows = [
      compare('start → running', raw['running'] ?? [], other, 1.5),
      compare('start → answer of the job (stored)', raw['answer'] ?? [], other),
    ]
    if ((raw['virsh'] ?? []).length > 0)
      rows.push(
        compare(
          'start → running',
          raw['running'] ?? [],
          { what: 'virsh start of the same guest', samples: raw['virsh'] ?? [] },
          1 / 3,
        ),
      )
    return { name: 'start', rows, notes, raw }
  },
}
