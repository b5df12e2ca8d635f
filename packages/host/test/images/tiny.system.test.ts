import { describe, expect, test } from 'vitest'
import { buildTiny } from '../../src/images/tiny.ts'
import { cacheDir, freePort, get, TestGuest, tempDir } from './guest.ts'

const bootArgs = (t: { kernel: string; initrd: string; cmdline: string }, knobs = ''): string[] => [
  '-m',
  '96',
  '-kernel',
  t.kernel,
  '-initrd',
  t.initrd,
  '-append',
  `${t.cmdline} ${knobs}`,
]

describe('the tiny guest', () => {
  test('boots, answers on the serial port and over HTTP, and obeys the power button', async () => {
    await using dir = await tempDir()
    const tiny = await buildTiny({ outDir: dir.path, cacheDir })
    const port = await freePort()
    await using guest = new TestGuest(dir.path, [
      ...bootArgs(tiny, 'wadah.hostname=soto wadah.tick=200'),
      ...['-netdev', `user,id=n,hostfwd=tcp:127.0.0.1:${port}-:80`, '-device', 'virtio-net-pci,netdev=n,romfile='],
    ])
    await guest.sees(`WADAH-TINY-READY ${tiny.version}`)
    await guest.sees('TICK 3')
    await guest.sees('tiny# ')
    await guest.type('echo "$(hostname)-$((6 * 7))"')
    await guest.sees('soto-42')
    const page = await guest.until('page', () => get(`http://127.0.0.1:${port}/`))
    expect(page).toMatchObject({ status: 200, text: '<h1>soto</h1>\n' })
    await guest.qmp('system_powerdown')
    expect(await guest.exit(20_000)).toBe(0)
  })

  test('with the guest agent: it answers', async () => {
    await using dir = await tempDir()
    const tiny = await buildTiny({ outDir: dir.path, cacheDir, agent: true })
    await using guest = new TestGuest(dir.path, [
      ...bootArgs(tiny),
      ...['-device', 'virtio-serial-pci', '-chardev', `socket,id=g,path=${dir.path}/qga,server=on,wait=off`],
      ...['-device', 'virtserialport,chardev=g,name=org.qemu.guest_agent.0'],
    ])
    await guest.sees('WADAH-TINY-READY')
    expect(await guest.until('agent', () => ask(`${dir.path}/qga`, '{"execute":"guest-get-osinfo"}'))).toContain(
      tiny.version,
    )
  })
})

async function ask(path: string, line: string): Promise<string | undefined> {
  const { connect } = await import('node:net')
  return new Promise((done) => {
    const socket = connect(path, () => socket.write(`${line}\n`))
    const timer = setTimeout(() => socket.destroy(), 2000)
    let text = ''
    socket.on('data', (d) => {
      text += d
      if (text.endsWith('\n')) socket.destroy()
    })
    socket.once('error', () => socket.destroy())
    socket.once('close', () => {
      clearTimeout(timer)
      done(text || undefined)
    })
  })
}
