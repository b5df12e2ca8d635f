#!/usr/bin/env node
// Stands in for bin/wadahd in tests: a socket, a pid file, a host without troubles. FAKE_FAIL: end at once; FAKE_PURGE_FAIL: --purge fails.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { dirname, join } from 'node:path'

const value = (name) => process.argv[process.argv.indexOf(name) + 1]
if (process.argv.includes('--purge')) process.exit(process.env.FAKE_PURGE_FAIL ? 1 : 0)
if (process.env.FAKE_FAIL) {
  console.error('the port is taken\x1b[2J')
  process.exit(3)
}
const socket = value('--socket')
mkdirSync(dirname(socket), { recursive: true })
const pidFile = join(dirname(socket), 'wadahd.pid')
const answers = {
  '/v1/ping': { ok: true, version: '9.9.9' },
  '/v1/host': {
    version: '9.9.9',
    accelerator: 'tcg',
    accelerator_reason: 'no KVM',
    attention: [{ about: 'KVM', detail: 'hangs', remedy: 'none' }],
  },
}
const empty = { items: [] }
const server = http.createServer((request, response) => {
  response.setHeader('content-type', 'application/json')
  response.end(JSON.stringify(answers[new URL(request.url, 'http://x').pathname] ?? empty))
})
setTimeout(() => server.listen(socket, () => writeFileSync(pidFile, `${process.pid}\n`)), 150)
process.on('SIGTERM', () => {
  rmSync(socket, { force: true })
  rmSync(pidFile, { force: true })
  process.exit(0)
})
