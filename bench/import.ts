/** Importing a qcow2 of 1 GiB, all of it data, against `qemu-img convert` of the same file (and then its fsync, as ours has). */
import { execFile } from 'node:child_process'
import { createReadStream, mkdirSync, openSync, rmSync, statSync, writeSync, closeSync } from 'node:fs'
import { randomBytes } from 'node:crypto'
import http from 'node:http'
import { promisify } from 'node:util'
import { type Bench, type Daemon, timed } from './kit.ts'
import { compare } from './report.ts'

const run = promisify(execFile)
const MIB = 2 ** 20

export const import_: Bench = {
  name: 'import',
  async run(daemon, options) {
    const mib = options.quick ? 128 : 1024
    const rounds = options.quick ? 3 : 7
    mkdirSync(daemon.scratch, { recursive: true })
    const raw = `${daemon.scratch}/source.raw`
    const source = `${daemon.scratch}/source.qcow2`
    const fd = openSync(raw, 'w')
    for (let i = 0; i < mib; i++) writeSync(fd, randomBytes(MIB))
    closeSync(fd)
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, source])
    rmSync(raw)
    const samples: Record<string, number[]> = { ours: [], job: [], bare: [] }
    const ours = async (i: number) => {
      const [ms, job] = await timed(async () => await ended(daemon, await upload(daemon, source, `i-${i}`)))
      samples['ours']?.push(ms)
      samples['job']?.push(Date.parse(job.ended_at) - Date.parse(job.created_at))
      await daemon.job('DELETE', `/v1/images/i-${i}`)
    }
    const bare = async () => {
      const copy = `${daemon.scratch}/copy.qcow2`
      const convert = async () => {
        await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'qcow2', source, copy])
        await run('sync', [copy])
      }
      const [ms] = await timed(convert)
      samples['bare']?.push(ms)
      rmSync(copy)
    }
    await ours(1000)
    await bare()
    for (const list of Object.values(samples)) list.length = 0
    for (let i = 0; i < rounds; i++) {
      if (i % 2 === 0) await ours(i)
      await bare()
      if (i % 2 === 1) await ours(i)
    }
    rmSync(source)
    const other = { what: 'qemu-img convert + fsync', samples: samples['bare'] ?? [] }
    return {
      name: 'import',
      rows: [
        compare(`import of ${mib} MiB: check and conversion (the job)`, samples['job'] ?? [], other, 1.2),
        compare(`import of ${mib} MiB, its upload and SHA-256 included`, samples['ours'] ?? [], other, undefined),
      ],
      notes: ['random data, so that nothing is sparse or compressed; uploaded over the local socket'],
      raw: samples,
    }
  },
}

async function ended(daemon: Daemon, job: { id: string }): Promise<{ created_at: string; ended_at: string }> {
  const done = await daemon.must('GET', `/v1/jobs/${job.id}?wait=600`)
  if (done.state !== 'done') throw new Error(`import: ${done.state}: ${done.fault?.detail}`)
  return done
}

/** One POST with the file as its body. */
function upload(daemon: Daemon, file: string, name: string): Promise<{ id: string }> {
  return new Promise((resolve, reject) => {
    const request = http.request(
      {
        socketPath: daemon.socket,
        method: 'POST',
        path: `/v1/images/upload?name=${name}&seed=none`,
        headers: {
          host: 'localhost',
          'content-type': 'application/octet-stream',
          'content-length': statSync(file).size,
        },
        agent: false,
      },
      (response) => {
        let text = ''
        response.on('data', (chunk) => (text += chunk))
        response.on('end', () =>
          response.statusCode === 202 ? resolve(JSON.parse(text)) : reject(new Error(`upload: ${text}`)),
        )
      },
    )
    request.once('error', reject)
    createReadStream(file, { highWaterMark: MIB }).pipe(request)
  })
}
