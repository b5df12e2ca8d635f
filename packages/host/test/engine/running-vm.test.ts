/** What is noted of a VM that goes on from saved RAM, in any order of QEMU's events and our commands. */
import { expect, test } from 'vitest'
import type { LiveRecord } from '../../src/engine/directory.ts'
import { RunningVm, type RunningOptions } from '../../src/engine/running-vm.ts'

function goingOn(live: Partial<LiveRecord>) {
  let status = 'paused'
  let hear = (_event: { event: string; data?: object }): void => {}
  const written: LiveRecord[] = []
  let times = 0
  let left = 0
  const running = new RunningVm({
    directory: { writeLive: async (l: LiveRecord) => void written.push(structuredClone(l)) },
    boot: {
      devices: [],
      machine: 'pc-q35-7.2',
      accelerator: 'kvm',
      cpu: { model: 'qemu64', flags: ['+popcnt', '-svm'] },
    },
    live: { vm: 'vm-aaaaaaaaaa', qemu: { pid: 1, start: 1 }, ...live },
    qmp: {
      subscribe: (listener: typeof hear) => ((hear = listener), () => {}),
      execute: async () => ({ status }),
      closed: new Promise(() => {}),
    },
    now_ms: () => 0,
    observed: () => {},
    wentOn: () => (times += 1),
    agentLeft: () => (left += 1),
    log: () => {},
  } as unknown as RunningOptions)
  return {
    running,
    written,
    times: () => times,
    left: () => left,
    hear: (event: { event: string; data?: object }) => hear(event),
    async fall(to: string) {
      status = to
      hear({ event: 'STOP' })
      await new Promise(setImmediate)
    },
    /** QEMU lets the guest go on, and its event comes before anything that we say. */
    async resume() {
      status = 'running'
      hear({ event: 'RESUME' })
      await new Promise(setImmediate)
    },
  }
}

test('its clock is to be set once, whether the event comes first or the command', async () => {
  const event = goingOn({ loading: true })
  expect((await event.running.refresh()).state).toBe('incoming')
  await event.resume()
  await event.running.noteLoaded()
  expect([event.times(), event.running.isBeginning]).toEqual([1, false])
  const command = goingOn({ loading: true })
  await command.running.noteLoaded()
  await command.resume()
  expect([command.times(), command.running.isBeginning]).toEqual([1, false])
  expect(command.written.map((l) => l.loading)).toEqual([undefined])
  const adopted = goingOn({})
  await adopted.resume()
  await adopted.running.noteLoaded()
  expect([adopted.times(), adopted.written]).toEqual([0, []])
})

test('an instant clone that runs is a stranger until it has become itself', async () => {
  const clone = goingOn({ stranger: true })
  expect((await clone.running.refresh()).state).toBe('incoming')
  await clone.resume()
  await clone.running.noteLoaded()
  expect([clone.running.last.state, clone.running.isBeginning, clone.written]).toEqual(['running', true, []])
  // Its pool is full before it has become itself: that is no waiting for its RAM.
  await clone.fall('io-error')
  expect(clone.running.last).toMatchObject({ state: 'paused', paused_by: 'io-error' })
  await clone.resume()
  await clone.running.noteItself()
  expect([clone.running.isBeginning, clone.times(), clone.written.length]).toEqual([false, 0, 1])
})

test('an agent that closes its end, or whose guest is reset, is told to whoever waits for its answer', async () => {
  const at = goingOn({})
  at.hear({ event: 'VSERPORT_CHANGE', data: { id: 'port-agent0', open: true } })
  expect([at.left(), at.running.last.agent]).toEqual([0, 'connected'])
  at.hear({ event: 'RESET', data: { guest: true, reason: 'guest-reset' } })
  expect(at.left()).toBe(1)
  at.hear({ event: 'VSERPORT_CHANGE', data: { id: 'port-agent0', open: false } })
  expect([at.left(), at.running.last.agent]).toEqual([2, 'absent'])
})

test('what its guest was shown is told with whatever is seen of it', async () => {
  const { running } = goingOn({})
  expect(await running.refresh()).toMatchObject({ machine: 'pc-q35-7.2', cpu_flags: ['popcnt'] })
})
