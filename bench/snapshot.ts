/** A snapshot with RAM of a 512 MB guest, and going back to it, against the same done by hand over QMP. */
import { execFileSync, spawn } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync, openSync, closeSync, rmSync } from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Bare, recipeOf, spawnBare } from './bare.ts'
import { type Bench, TINY, booted, removeVms, timed, tinyImage } from './kit.ts'
import { absolute, compare } from './report.ts'

const MEMORY_MIB = 512
const DISK_MIB = 256
/** What a guest of such a size has in use: pages of zeros cost nothing on either side. */
const FILL_MIB = 160

export const snapshot: Bench = {
  name: 'snapshot',
  async run(daemon, { quick }) {
    const rounds = quick ? 3 : 10
    await tinyImage(daemon)
    await daemon.job('POST', '/v1/vms', { name: 'n', ...TINY, memory_mib: MEMORY_MIB, disks: [{ size_mib: DISK_MIB }] })
    await daemon.job('POST', '/v1/vms/n/start')
    await booted(daemon, 'n', 1)
    await daemon.must('POST', '/v1/vms/n/exec', { argv: ['/bin/busybox', 'sh', '-c', fill], timeout_ms: 60_000 })
    const vm = await daemon.must('GET', '/v1/vms/n')
    const recipe = recipeOf(vm.status.pid)
    const volume = vm.spec.disks[0].volume as string
    const disk = recipe.argv.join('\n').match(new RegExp(`/[^"\\n]*${volume}[^"\\n]*`))?.[0] ?? ''
    const raw: Record<string, number[]> = {
      take: [],
      bareTake: [],
      revert: [],
      bareRevert: [],
      stall: [],
      bareStall: [],
    }

    // The bare guest is gone on from a RAM that Wadah saved: the same pages on both sides.
    const files = `${daemon.scratch}/n`
    mkdirSync(files, { recursive: true })
    chmodSync(files, 0o711)
    const own = `${files}/base.qcow2`
    execFileSync('cp', ['--sparse=always', disk, own])
    chownSync(own, recipe.uid, recipe.gid)
    await daemon.job('POST', '/v1/vms/n/snapshots', { name: 'seed', ram: true })
    const ramId = (await daemon.must('GET', '/v1/volumes/n-ram-seed')).id as string
    const seedRam = disk.replace(/[^/]*$/, `${ramId}.raw`)
    let [, bare] = await spawnBare(recipe, `${files}/g0`, { [disk]: own }, undefined, seedRam)
    try {
      for (let i = 0; i < rounds + 1; i++) {
        const [take, job] = await timed(() => daemon.job('POST', '/v1/vms/n/snapshots', { name: `s${i}`, ram: true }))
        const [revert] = await timed(() => daemon.job('POST', `/v1/vms/n/snapshots/s${i}/revert`, { force: true }))
        await daemon.job('DELETE', `/v1/vms/n/snapshots/s${i}`)
        const over = `${files}/over${i}.qcow2`
        const next = `${files}/next${i}.qcow2`
        make(over, own, recipe.uid)
        const ram = `${files}/ram${i}`
        const [bareTake, stall] = await timed(() => byHand(bare, `${files}/ram.sock`, ram, over, recipe.uid))
        const from = performance.now()
        await bare.end()
        // As ours: the disk goes on in a new file on top of the snapshot's.
        make(next, own, recipe.uid)
        ;[, bare] = await spawnBare(recipe, `${files}/g${i + 1}`, { [disk]: next }, undefined, ram)
        const bareRevert = performance.now() - from
        // The first is for warming up.
        if (i > 0) {
          raw['take']?.push(take)
          raw['revert']?.push(revert)
          raw['stall']?.push(job.result.stall_ms)
          raw['bareTake']?.push(bareTake)
          raw['bareStall']?.push(stall)
          raw['bareRevert']?.push(bareRevert)
        }
        rmSync(ram)
      }
    } finally {
      await bare.end()
      await removeVms(daemon, 'n')
      rmSync(files, { recursive: true, force: true })
    }
    const hand = (samples: number[] | undefined) => ({
      what: 'stop, transaction, migrate, cont by hand',
      samples: samples ?? [],
    })
    return {
      name: 'snapshot',
      rows: [
        compare(`snapshot with RAM, ${MEMORY_MIB} MiB guest`, raw['take'] ?? [], hand(raw['bareTake']), 1.3),
        compare(
          'revert to it',
          raw['revert'] ?? [],
          { what: 'kill, qemu-img create -b, bare spawn -incoming, cont', samples: raw['bareRevert'] ?? [] },
          1.3,
        ),
        compare('the guest stood still', raw['stall'] ?? [], hand(raw['bareStall'])),
        absolute('the guest stood still', 'ms', raw['stall'] ?? []),
      ],
      notes: [`${FILL_MIB} MiB of the RAM are filled with what is no zeros; both sides write to the disk (fdatasync).`],
      raw,
    }
  },
}

const fill = `mkdir -p /fill; mount -t tmpfs none /fill; dd if=/dev/urandom of=/fill/a bs=1M count=${FILL_MIB} 2>/dev/null`

function make(file: string, base: string, uid: number): void {
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', file])
  chownSync(file, uid, uid)
}

/** What an administrator would type, without a mistake or a moment's thought. Returns how long the guest stood still. */
async function byHand(bare: Bare, socket: string, ram: string, overlay: string, uid: number): Promise<number> {
  const { ask } = bare
  const file = openSync(ram, 'w')
  rmSync(socket, { force: true })
  const sink = Promise.withResolvers<void>()
  const server = createServer({ pauseOnConnect: true }, (connection) => {
    server.close()
    const dd = spawn('dd', ['bs=1M', 'iflag=fullblock', 'conv=fdatasync', 'status=none'], {
      stdio: [connection, file, 'inherit'],
    })
    dd.once('exit', (code) => (code === 0 ? sink.resolve() : sink.reject(new Error(`dd: ${code}`))))
    connection.destroy()
  })
  await once(server.listen(socket), 'listening')
  chownSync(socket, uid, uid)
  const opened = { driver: 'file', filename: overlay }
  await ask('blockdev-add', { driver: 'qcow2', 'node-name': 'over', file: opened, backing: null })
  await ask('migrate-set-parameters', { 'max-bandwidth': 2 ** 50 })
  await ask('stop')
  const stopped = performance.now()
  await ask('transaction', { actions: [{ type: 'blockdev-snapshot', data: { node: 'vol-disk1', overlay: 'over' } }] })
  await ask('migrate', { uri: `unix:${socket}` })
  for (let state = 'active'; state !== 'completed'; await sleep(2)) {
    state = (await ask('query-migrate')).status
    if (state === 'failed') throw new Error('the bare migration failed')
  }
  await ask('cont')
  const stall = performance.now() - stopped
  await sink.promise
  closeSync(file)
  return stall
}
