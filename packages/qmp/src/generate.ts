import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { generateTypes, type SchemaEntry } from './generate-types.ts'

/**
 * `node packages/qmp/src/generate.ts [qemu binary] [output file]`: asks a QEMU for its schema and writes its types.
 * Run it after an upgrade of the QEMU this project is developed against, and commit the result.
 */

export const GENERATED_FILE = `${import.meta.dirname}/generated/qmp-types.ts`

const DEADLINE_MS = 20_000
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024

export type QemuSchema = { version: string; schema: SchemaEntry[] }

/** Starts `binary` without a machine, asks for version and schema, and lets it quit. */
export async function readSchema(binary = 'qemu-system-x86_64', signal?: AbortSignal): Promise<QemuSchema> {
  const running = promisify(execFile)(
    binary,
    ['-machine', 'none', '-display', 'none', '-nodefaults', '-no-user-config', '-S', '-qmp', 'stdio'],
    { timeout: DEADLINE_MS, maxBuffer: MAX_OUTPUT_BYTES, signal },
  )
  // An early exit is told by the promise; without a listener the broken pipe would be thrown besides.
  running.child.stdin?.on('error', () => {})
  for (const execute of ['qmp_capabilities', 'query-version', 'query-qmp-schema', 'quit']) {
    running.child.stdin?.write(`${JSON.stringify({ execute, id: execute })}\n`)
  }
  const { stdout } = await running
  const answers = stdout
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => JSON.parse(line))
  const answer = (id: string) => {
    const found = answers.find((message) => message.id === id)
    if (found?.return === undefined) throw new Error(`${binary} did not answer ${id}: ${JSON.stringify(found)}`)
    return found.return
  }
  const { major, minor, micro } = answer('query-version').qemu
  return { version: `${major}.${minor}.${micro}`, schema: answer('query-qmp-schema') }
}

if (import.meta.main) {
  const [binary, file = GENERATED_FILE] = process.argv.slice(2)
  const { version, schema } = await readSchema(binary)
  await writeFile(file, generateTypes(schema, version))
  console.log(`${file}: ${schema.length} schema entries of QEMU ${version}`)
}
