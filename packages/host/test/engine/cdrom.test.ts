import { describe, expect, test } from 'vitest'
import type { Running } from '@wadah/ports/machine'
import { setMedium } from '../../src/engine/cdrom.ts'

const never = new AbortController().signal

/** A drive as QEMU keeps it: a tray that a guest can lock, a medium that can be changed only while it is open. */
function drive(o: { locked?: boolean; node?: string } = {}) {
  const now = { open: false, node: o.node, nodes: new Set(o.node === undefined ? [] : [o.node]), said: [] as string[] }
  const running = {
    execute: async (command: string, args: Record<string, any> = {}) => {
      now.said.push(command)
      switch (command) {
        case 'query-block':
          return [
            { qdev: '/machine/peripheral/disk-root/virtio-backend' },
            {
              qdev: 'cd-cd0',
              locked: o.locked ?? false,
              tray_open: now.open,
              ...(now.node === undefined ? {} : { inserted: { 'node-name': now.node } }),
            },
          ]
        case 'blockdev-open-tray':
          if (!o.locked || args['force']) now.open = true
          return {}
        case 'blockdev-close-tray':
          now.open = false
          return {}
        case 'blockdev-remove-medium':
          if (!now.open) throw new Error('the tray is closed')
          now.node = undefined
          return {}
        case 'blockdev-del':
          if (now.node === args['node-name']) throw new Error('it is in use')
          now.nodes.delete(args['node-name'])
          return {}
        case 'blockdev-add':
          now.nodes.add(args['node-name'])
          return {}
        case 'blockdev-insert-medium':
          if (!now.open || now.node !== undefined) throw new Error('closed, or not empty')
          now.node = args['node-name']
          return {}
        default:
          throw new Error(command)
      }
    },
  } as unknown as Running
  return { now, running }
}

describe('a CD drive of a running VM', () => {
  test('takes another CD, and forgets the one before', async () => {
    const { now, running } = drive({ node: 'old' })
    await setMedium(running, 'cd0', '/images/iso', false, never)
    expect(now.open).toBe(false)
    expect([...now.nodes]).toEqual([now.node])
    expect(now.node).not.toBe('old')
  })
  test('is emptied, also when it is empty', async () => {
    const { now, running } = drive({ node: 'old' })
    await setMedium(running, 'cd0', undefined, false, never)
    await setMedium(running, 'cd0', undefined, false, never)
    expect([now.open, now.node, now.nodes.size]).toEqual([false, undefined, 0])
  })
  test('that the guest has locked is left as it is, unless forced', async () => {
    const { now, running } = drive({ node: 'old', locked: true })
    await expect(setMedium(running, 'cd0', undefined, false, never, 50)).rejects.toMatchObject({
      fault: { code: 'busy' },
    })
    expect([now.node, [...now.nodes]]).toEqual(['old', ['old']])
    await setMedium(running, 'cd0', undefined, true, never, 50)
    expect(now.node).toBe(undefined)
  })
  test('that comes at the next start only is said to', async () => {
    const { running } = drive()
    await expect(setMedium(running, 'cd1', undefined, false, never)).rejects.toMatchObject({
      fault: { code: 'wrong_state' },
    })
  })
})
