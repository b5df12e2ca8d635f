/** A linked clone and its start, against `qemu-img create -b` and a bare spawn. */
import { execFile } from 'node:child_process'
import { chownSync } from 'node:fs'
import { promisify } from 'node:util'
import { recipeOf, spawnBare } from './bare.ts'
import { type Bench, timed } from './kit.ts'
import { compare } from './report.ts'
import { source } from './source.ts'

const run = promisify(execFile)

export const clone: Bench = {
  name: 'clone',
  async run(daemon, options) {
    const rounds = options.quick ? 5 : 20
    const from = await source(daemon, options)
    await from.clone('c-first', true)
    const vm = await daemon.must('GET', '/v1/vms/c-first')
    const recipe = recipeOf(vm.status.pid)
    const id = vm.spec.disks[0].volume as string
    const disk = recipe.argv.join('\n').match(new RegExp(`/[^"\\n]*${id}[^"\\n]*`))?.[0] ?? ''
    const info = JSON.parse((await run('qemu-img', ['info', '-U', '--output=json', disk])).stdout)
    const base = info['full-backing-filename'] as string
    await from.drop('c-first')
    const raw: Record<string, number[]> = { ours: [], bare: [] }
    const ours = async (i: number) => {
      const [ms] = await timed(() => from.clone(`c-${i}`, true))
      raw['ours']?.push(ms)
      await from.drop(`c-${i}`)
    }
    const bare = async (i: number) => {
      // In the same pool folder: the name of the base is kept in the file, and QEMU reads it there.
      const copy = `${daemon.scratch}/c${i}.qcow2`
      const make = async () => {
        await run('qemu-img', [
          'create',
          '-q',
          '-f',
          'qcow2',
          '-b',
          base,
          '-F',
          info['backing-filename-format'] ?? 'qcow2',
          copy,
        ])
        chownSync(copy, recipe.uid, recipe.gid)
      }
      const [ms, guest] = await spawnBare(recipe, `${daemon.scratch}/c${i}`, { [disk]: copy }, make)
      raw['bare']?.push(ms)
      await guest.end()
    }
    await ours(1000)
    await bare(1000)
    for (const samples of Object.values(raw)) samples.length = 0
    for (let i = 0; i < rounds; i++) {
      if (i % 2 === 0) await ours(i)
      await bare(i)
      if (i % 2 === 1) await ours(i)
    }
    const other = { what: 'qemu-img create -b + bare spawn + cont', samples: raw['bare'] ?? [] }
    return {
      name: 'clone',
      rows: [compare('linked clone + start', raw['ours'] ?? [], other, 1.5)],
      notes: [from.what],
      raw,
    }
  },
}
