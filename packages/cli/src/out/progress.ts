/** One line that rewrites itself on a terminal; plain lines, one per step, anywhere else. */
import type { Job } from '@wadah/api/schema/job'
import type { Cli } from '../cli.ts'
import { clean } from '../text/clean.ts'
import { formatTook } from '../text/format.ts'

const BAR = 20

/** `[########------------]  40%  build  12.3 s`, cut to the width of the terminal. */
export function progressLine(job: Job, elapsed_ms: number, columns: number): string {
  const percent = Math.max(0, Math.min(100, Math.round(job.percent)))
  const full = Math.round((percent / 100) * BAR)
  const bar = `[${'#'.repeat(full)}${'-'.repeat(BAR - full)}]`
  const line = `${bar} ${String(percent).padStart(3)}%  ${clean(stepName(job))}  ${formatTook(elapsed_ms)}`
  return line.slice(0, Math.max(1, columns - 1))
}

/** What a job is doing now. */
export function stepName(job: Job): string {
  const step = job.steps.find((s) => s.state === 'running' || s.state === 'undoing')
  const prefix = job.state === 'undoing' || job.state === 'cancelling' ? `${job.state}: ` : ''
  return `${prefix}${step?.name ?? job.kind}`
}

export class Progress {
  readonly #cli: Cli
  readonly #silent: boolean
  readonly #began_ms: number
  #last = ''
  #drawn = false
  constructor(cli: Cli, silent: boolean) {
    this.#cli = cli
    this.#silent = silent || (cli.options.quiet ?? false) || cli.out.isJson
    this.#began_ms = cli.io.now()
  }
  show(job: Job): void {
    if (this.#silent) return
    const { stderr } = this.#cli.io
    if (stderr.isTTY) {
      stderr.write(`\r\x1b[K${progressLine(job, this.#cli.io.now() - this.#began_ms, stderr.columns ?? 80)}`)
      this.#drawn = true
      return
    }
    const step = stepName(job)
    const name = job.target.name ?? job.target.id
    if (step !== this.#last && step !== job.kind && job.state !== 'done') {
      this.#cli.out.note(this.#cli.t('job.step', { kind: job.kind, name, step, percent: Math.round(job.percent) }))
    }
    this.#last = step
  }
  clear(): void {
    if (this.#drawn) this.#cli.io.stderr.write('\r\x1b[K')
    this.#drawn = false
  }
}
