/** The order of what QEMU is told when a guest writes too fast for pre-copy. A QEMU that answers as 7.2 does. */
import { describe, expect, test } from 'vitest'
import type { RunningVm } from '../../src/engine/running-vm.ts'
import { type SaveRam, saveRam } from '../../src/engine/snapshot/ram.ts'

type Event = { event: string; data: { status?: string }; timestamp: { seconds: number; microseconds: number } }

function restlessQemu({ allowed }: { allowed: boolean }) {
  const said: string[] = []
  const listeners = new Set<(e: Event) => void>()
  const last = new Map<string, number>()
  const tell = (event: string, status?: string) => {
    last.set(event, performance.now())
    const e = { event, data: status === undefined ? {} : { status }, timestamp: { seconds: 0, microseconds: 0 } }
    for (const hear of [...listeners]) hear(e)
  }
  let migration = 'none'
  let state = 'running'
  let background = false
  const to = (status: string) => tell('MIGRATION', (migration = status))
  const running = {
    vm: 'vm-aaaaaaaaaa',
    last: { state: 'running' },
    record: { memory: { mib: 64, max_mib: 64 } },
    status: async () => state,
    watch: () => ({
      seen: (name: string) => last.get(name),
      until: (wanted: (e: Event) => boolean) =>
        new Promise<Event>((resolve) => {
          const hear = (e: Event) => wanted(e) && (listeners.delete(hear), resolve(e))
          listeners.add(hear)
        }),
      close: () => listeners.clear(),
    }),
    execute: async (command: string, args?: { capabilities?: { capability: string; state: boolean }[] }) => {
      const on = args?.capabilities?.filter((c) => c.state).map((c) => c.capability) ?? []
      if (!command.startsWith('query') && command !== 'migrate-set-parameters')
        said.push(on.length > 0 ? `+${on.join()}` : command)
      switch (command) {
        case 'migrate-set-capabilities': {
          if (!allowed && on.includes('background-snapshot')) throw new Error('not supported by host kernel')
          const asked = args?.capabilities?.find((c) => c.capability === 'background-snapshot')
          if (asked) background = asked.state
          return {}
        }
        case 'migrate':
          to('active')
          if (background) setTimeout(() => ((state = 'running'), tell('RESUME'), to('completed')), 20)
          return {}
        case 'migrate-set-parameters':
          // So much may the guest be held that it comes to its end after all.
          if ((args as { 'downtime-limit'?: number })['downtime-limit'] === 2_000_000) {
            state = 'finish-migrate'
            tell('STOP')
            to('pre-switchover')
          }
          return {}
        case 'migrate-continue':
          to('completed')
          return {}
        case 'migrate_cancel':
          to('cancelled')
          return {}
        case 'query-migrate':
          return { status: migration, ram: { 'dirty-sync-count': 9, transferred: 1 } }
        case 'stop':
          state = 'paused'
          tell('STOP')
          return {}
        case 'cont':
          state = 'running'
          tell('RESUME')
          return {}
        default:
          throw new Error(command)
      }
    },
  }
  const how: SaveRam = {
    openSink: async () => {
      said.push('file begun')
      return {
        path: '/nowhere',
        done: new Promise<void>((ok) => setTimeout(() => (said.push('file whole'), ok()), 400)),
        close: () => {},
      }
    },
    atSwitch: async () => void said.push(`layers, ${state}`),
    signal: new AbortController().signal,
    log: (line) => said.push(`log: ${line}`),
  }
  // Without what only switches off what it had been told before.
  const told = () => said.filter((s) => s !== 'migrate-set-capabilities')
  return { told, save: () => saveRam(running as unknown as RunningVm, how), state: () => state }
}

describe('a guest that writes faster than its RAM is saved', () => {
  test('where the host lets QEMU: given up, and saved in the background from an instant in which the disks change', async () => {
    const qemu = restlessQemu({ allowed: true })
    expect((await qemu.save()).stall_ms).toBeGreaterThan(0)
    expect(qemu.state()).toBe('running')
    expect(qemu.told()).toEqual([
      '+background-snapshot',
      'file begun',
      '+events,pause-before-switchover',
      'migrate',
      'migrate_cancel',
      'file whole',
      expect.stringMatching(/^log: .*about to write/),
      'file begun',
      '+background-snapshot',
      'stop',
      'layers, paused',
      'migrate',
      'file whole',
    ])
  })
  test('where it does not: held until it is saved', async () => {
    const qemu = restlessQemu({ allowed: false })
    await qemu.save()
    expect(qemu.state()).toBe('running')
    expect(qemu.told()).toEqual([
      '+background-snapshot',
      'file begun',
      '+events,pause-before-switchover',
      'migrate',
      'layers, finish-migrate',
      'migrate-continue',
      // It does not wait for the file.
      'cont',
      'file whole',
    ])
  })
})
