/** CDs: a small one that says on the serial port that it was booted, and a disk that does the same. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync, closeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, images } = endpoints
let d: Daemon
let dir: string

/** Loaded at 0x7c00 by a BIOS, from a disk or (El Torito, no emulation) a CD: writes a text to COM1 and halts. */
function bootCode(text: string, size: number): Buffer {
  const code = Buffer.alloc(size)
  // xor ax,ax; mov ds,ax; cld; mov si,0x7c16; again: lodsb; test al,al; jz done; mov dx,0x3f8; out dx,al; jmp again; done: hlt; jmp done
  Buffer.from('31c08ed8fcbe167cac84c07406baf803eeebf5f4ebfd', 'hex').copy(code)
  code.write(`${text}\r\n\0`, 22, 'latin1')
  code.writeUInt16LE(0xaa55, 510)
  return code
}

async function upload(name: string, data: Buffer): Promise<void> {
  await d.api.call(images.createIso, { body: { name } })
  await d.api.call(images.upload, { params: { image: name, file: 'iso' }, data })
}

const params = { params: { vm: 'box' } }
const drive = { params: { vm: 'box', cdrom: 'cd0' } }
const said = async (text: string) => (await d.api.call(vms.log, params)).text.split(text).length - 1
const restart = async () => {
  await d.done(await d.api.call(vms.stop, params))
  await until('its end', async () => (await d.vm('box')).status.state === 'stopped')
  await d.done(await d.api.call(vms.start, params))
}

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  dir = mkdtempSync(join(tmpdir(), 'wadah-cd-'))
  mkdirSync(join(dir, 'cd'))
  writeFileSync(join(dir, 'cd/boot.bin'), bootCode('WADAH-CD-BOOT', 2048))
  execFileSync('xorriso', [
    ...['-as', 'mkisofs', '-quiet', '-o', join(dir, 'cd.iso')],
    ...['-b', 'boot.bin', '-no-emul-boot', '-boot-load-size', '4', join(dir, 'cd')],
  ])
})
afterAll(async () => {
  await d.purge()
  rmSync(dir, { recursive: true, force: true })
})

describe('CD drives', () => {
  test('what is no CD is refused, and not kept', async () => {
    await expect(upload('fake', Buffer.alloc(100_000))).rejects.toMatchObject({ fault: { code: 'image_corrupt' } })
    expect((await d.api.call(images.get, { params: { image: 'fake' } })).ready).toBe(false)
    await expect(
      d.api.call(vms.create, { body: { name: 'box', nics: [], cdroms: [{ image: 'fake' }] } }),
    ).rejects.toMatchObject({ fault: { code: 'wrong_state', field: '/cdroms/0/image' } })
    await d.done(await d.api.call(images.delete, { params: { image: 'fake' } }))
  })

  test('an empty disk, a CD: the CD boots; it is held as long as it lies in a drive', async () => {
    await upload('cd', readFileSync(join(dir, 'cd.iso')))
    const body = {
      name: 'box',
      nics: [],
      memory_mib: 64,
      disks: [{ name: 'root', size_mib: 16, format: 'raw' as const }],
      cdroms: [{ image: 'cd' }],
      start: true,
    }
    await d.done(await d.api.call(vms.create, { body }))
    await until('the CD to boot', async () => (await said('WADAH-CD-BOOT')) === 1, 120_000)
    await expect(d.api.call(images.delete, { params: { image: 'cd' } })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    await expect(d.api.call(vms.create, { body: { name: 'no', image: 'cd' } })).rejects.toMatchObject({
      fault: { code: 'invalid', field: '/image' },
    })
  })

  test('out and in again while it runs, also after a restart of the daemon', async () => {
    expect((await d.api.call(vms.eject, { ...drive, body: {} })).spec.cdroms).toEqual([{ name: 'cd0' }])
    await d.kill('SIGKILL')
    await d.start()
    const again = await d.api.call(vms.insert, { ...drive, body: { image: 'cd' } })
    expect(again.spec.cdroms?.[0]?.image).toBe((await d.api.call(images.get, { params: { image: 'cd' } })).id)
    expect(again.status.pending_restart).toEqual([])
    await d.api.call(vms.reset, params)
    await until('the CD to boot again', async () => (await said('WADAH-CD-BOOT')) === 2, 120_000)
    await expect(d.api.call(vms.eject, { params: { vm: 'box', cdrom: 'cd7' }, body: {} })).rejects.toMatchObject({
      fault: { code: 'not_found' },
    })
  })

  test('the boot order says which comes first', async () => {
    await d.done(await d.api.call(vms.stop, params))
    await until('its end', async () => (await d.vm('box')).status.state === 'stopped')
    const volume = (await d.vm('box')).spec.disks[0]?.volume
    const disk = openSync(join(d.data, `pools/default/wadah/volumes/${volume}.raw`), 'r+')
    writeSync(disk, bootCode('WADAH-DISK-BOOT', 512), 0, 512, 0)
    closeSync(disk)
    await d.done(await d.api.call(vms.start, params))
    await until('the disk to boot', async () => (await said('WADAH-DISK-BOOT')) === 1, 120_000)
    const edited = await d.api.call(vms.edit, { ...params, body: { boot_order: ['cd0'] } })
    expect(edited.status.pending_restart).toEqual(['boot_order'])
    await restart()
    await until('the CD to boot', async () => (await said('WADAH-CD-BOOT')) === 3, 120_000)
    expect((await d.vm('box')).status.pending_restart).toEqual([])
  })

  test('with UEFI its variables stay with it, go to a clone, and go with it', async () => {
    await d.done(await d.api.call(vms.stop, params))
    await until('its end', async () => (await d.vm('box')).status.state === 'stopped')
    await d.api.call(vms.edit, { ...params, body: { firmware: { kind: 'uefi' } } })
    await d.done(await d.api.call(vms.start, params))
    const vars = async (name: string) => join(d.data, 'vms', (await d.vm(name)).id, 'state/nvram.fd')
    const before = readFileSync(await vars('box'))
    // The firmware itself notes what it has found to boot from.
    const file = await vars('box')
    await until('a note of the firmware', () => !readFileSync(file).equals(before), 120_000)
    await d.done(await d.api.call(vms.stop, params))
    await until('its end', async () => (await d.vm('box')).status.state === 'stopped')
    await d.done(await d.api.call(vms.clone, { ...params, body: { name: 'twin' } }))
    expect(readFileSync(await vars('twin')).equals(readFileSync(await vars('box')))).toBe(true)
    for (const vm of ['box', 'twin']) await d.done(await d.api.call(vms.delete, { params: { vm } }))
    await d.done(await d.api.call(images.delete, { params: { image: 'cd' } }))
    expect(d.traces()).toMatchObject({ qemus: [], folders: [], volumes: [] })
  })
})
