/** The tools of the host's network, optionally inside a named network namespace (a lab, a test). Thin: text in, text out. */
import { writeFile } from 'node:fs/promises'
import { errno } from '../system/files.ts'
import { run, type RunResult } from '../system/run.ts'

const TIMEOUT_MS = 20_000

export type Shell = {
  readonly netns: string | undefined
  run(
    program: string,
    argv: readonly string[],
    options?: { input?: string; signal?: AbortSignal | undefined; ok_codes?: number[] },
  ): Promise<RunResult>
  /** `ip -batch -`; nothing is started for no lines. The first line that fails ends it. */
  ip(lines: readonly string[], signal?: AbortSignal): Promise<void>
  /** `ip -json -details addr show`, all interfaces. */
  links(): Promise<string>
  /** `nft -f -`: one transaction. */
  nft(script: string, signal?: AbortSignal): Promise<void>
  /** Sets `/proc/sys/net/<key>`; false when this kernel has no such key. */
  sysctl(key: string, value: string): Promise<boolean>
}

export function createShell(netns: string | undefined): Shell {
  const shell: Shell = {
    netns,
    async run(program, argv, options = {}) {
      const [file, args] =
        netns === undefined
          ? [program, argv]
          : program === 'ip'
            ? ['ip', ['-n', netns, ...argv]]
            : ['ip', ['netns', 'exec', netns, program, ...argv]]
      return await run(file, args, { timeout_ms: TIMEOUT_MS, ...options })
    },
    async ip(lines, signal) {
      if (lines.length > 0) await shell.run('ip', ['-batch', '-'], { input: `${lines.join('\n')}\n`, signal })
    },
    async links() {
      return (await shell.run('ip', ['-json', '-details', 'addr', 'show'])).stdout
    },
    async nft(script, signal) {
      await shell.run('nft', ['-f', '-'], { input: script, signal })
    },
    async sysctl(key, value) {
      const path = `/proc/sys/net/${key}`
      if (netns !== undefined) {
        // /proc/sys/net shows the namespace of whoever looks.
        const { code } = await shell.run('tee', [path], { input: value, ok_codes: [1] })
        return code === 0
      }
      try {
        await writeFile(path, value)
        return true
      } catch (error) {
        if (errno(error) === 'ENOENT') return false
        throw error
      }
    },
  }
  return shell
}
