/** Entry of the bundle that bin/wadah runs. */
import { join } from 'node:path'
import { run } from './run.ts'

// `wadah vm list | head`: a reader that went away is no error.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
}

process.exitCode = await run(process.argv.slice(2), {
  env: process.env,
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  now: () => performance.timeOrigin + performance.now(),
  onInterrupt(listener) {
    process.on('SIGINT', listener)
    return () => process.off('SIGINT', listener)
  },
  home: process.env['WADAH_HOME'] || join(import.meta.dirname, '..', '..', '..'),
})
// A forgotten socket must not keep a finished command from ending; what was printed is flushed first.
process.stdout.write('', () => process.stderr.write('', () => process.exit()))
