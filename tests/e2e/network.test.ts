import { createServer } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms } = endpoints
let d: Daemon

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  await d.tiny()
})
afterAll(async () => {
  await d.purge()
})

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}
async function page(url: string): Promise<string> {
  return until(url, () =>
    fetch(url, { signal: AbortSignal.timeout(3_000) }).then(
      (r) => r.text(),
      () => undefined,
    ),
  )
}

describe('networks', () => {
  test('names, addresses, published ports on nat', async () => {
    const port = await freePort()
    const nics = [{ network: 'default', publish: [{ port, to: 80 }] }]
    const left = await d.create({ name: 'left', start: true, nics })
    await d.create({ name: 'right', start: true, nics: [{}] })
    expect(left.addresses).toHaveLength(1)
    const address = left.addresses[0]?.address
    expect(await page(`http://127.0.0.1:${port}/`)).toContain('left')
    expect(await page(`http://${address}/`)).toContain('left')
    await d.booted('right')
    const seen = await until('the neighbour by name', async () => {
      const { out } = await d.exec('right', '/bin/busybox', 'wget', '-qO-', 'http://left/')
      return out.includes('left') && out
    })
    expect(seen).toContain('left')

    await expect(d.create({ name: 'third', nics: [{ publish: [{ port, to: 80 }] }] })).rejects.toMatchObject({
      fault: { code: 'port_taken', field: '/nics/0/publish/0/port' },
    })
    const mac = left.spec.nics[0]?.mac
    await d.done(await d.api.call(vms.stop, { params: { vm: 'left' } }))
    await until('its end', async () => (await d.vm('left')).status.state === 'stopped')
    await d.done(await d.api.call(vms.start, { params: { vm: 'left' } }))
    const again = await d.vm('left')
    expect([again.spec.nics[0]?.mac, again.addresses[0]?.address]).toEqual([mac, address])
    expect(await page(`http://127.0.0.1:${port}/`)).toContain('left')
  })

  test('a port another program has is refused; publishing changes while it runs', async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as { port: number }
    const nic = (await d.vm('left')).spec.nics[0]?.name ?? ''
    const edit = (p: number) =>
      d.api.call(vms.edit, { params: { vm: 'left' }, body: { nics: [{ name: nic, publish: [{ port: p, to: 80 }] }] } })
    await expect(edit(port)).rejects.toMatchObject({ fault: { code: 'port_taken' } })
    await new Promise((resolve) => server.close(resolve))
    await edit(port)
    expect(await page(`http://127.0.0.1:${port}/`)).toContain('left')
  })

  test('a network without root publishes too', async () => {
    const port = await freePort()
    await d.create({ name: 'alone', start: true, nics: [{ network: 'user', publish: [{ port, to: 80 }] }] })
    expect(await page(`http://127.0.0.1:${port}/`)).toContain('alone')
    // QEMU itself has the port open: until its next start it stays so, and that is said.
    const nic = (await d.vm('alone')).spec.nics[0]?.name ?? ''
    const edited = await d.api.call(vms.edit, { params: { vm: 'alone' }, body: { nics: [{ name: nic, publish: [] }] } })
    expect(edited.status.pending_restart).toEqual(['nics'])
  })

  test('guests reach the DNS of the host and no program of it, on both kinds', async () => {
    const server = createServer((socket) => socket.resume().end('HTTP/1.0 200 OK\r\n\r\nof the host'))
    await new Promise<void>((resolve) => server.listen(0, '0.0.0.0', resolve))
    const { port } = server.address() as { port: number }
    try {
      await d.create({ name: 'insider', start: true, nics: [{}, { network: 'user' }] })
      await d.booted('insider')
      const { gateway } = await d.api.call(endpoints.networks.get, { params: { network: 'default' } })
      const ask = async (...argv: string[]) => (await d.exec('insider', '/bin/busybox', ...argv)).out
      const has = async (address: string) => (await ask('ip', 'addr')).includes(address)
      await until(
        'both addresses',
        async () => (await has('10.0.2.15')) && has(`${gateway?.replace(/\.1$/, '.')}`),
        60_000,
      )
      for (const address of [gateway, '10.0.2.2'])
        expect(await ask('timeout', '3', '/bin/busybox', 'wget', '-qO-', `http://${address}:${port}/`)).toBe('')
      expect(await ask('nslookup', 'insider.wadah.internal', gateway ?? '')).toContain('Address')
      expect(await page(`http://127.0.0.1:${port}/`)).toBe('of the host')
    } finally {
      await new Promise((resolve) => server.close(resolve))
    }
  })

  test('a network that is used is not deleted', async () => {
    await expect(d.api.call(endpoints.networks.delete, { params: { network: 'default' } })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    const made = await d.api.call(endpoints.networks.create, { body: { name: 'second', kind: 'nat' } })
    expect(made.state).toBe('up')
    await d.api.call(endpoints.networks.delete, { params: { network: 'second' } })
  })
})
