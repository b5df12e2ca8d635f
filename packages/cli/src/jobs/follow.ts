/** Waits for a job, showing how far it is. Ctrl-C lets go of it; the job goes on. */
import { endpoints } from '@wadah/api/endpoints/all'
import { fail, toFault, WadahError, type Fault } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Cli } from '../cli.ts'
import { EXIT } from '../exit.ts'
import type { Api } from '../net/api.ts'
import { Progress } from '../out/progress.ts'

const ENDED = new Set<Job['state']>(['done', 'failed', 'cancelled'])
export const hasEnded = (job: Job): boolean => ENDED.has(job.state)

/** Thrown on Ctrl-C, after the words were printed. */
export class Detached extends Error {
  readonly exit = EXIT.interrupted
}

export type FollowOptions = { onJob?: (job: Job) => void; signal?: AbortSignal; silent?: boolean }

/** Resolves with the ended job, whatever its end. @throws Detached, WadahError */
export async function follow(cli: Cli, api: Api, first: Job, options: FollowOptions = {}): Promise<Job> {
  const interrupt = new AbortController()
  const off = options.silent ? () => {} : cli.io.onInterrupt(() => interrupt.abort(new Detached('interrupted')))
  const signal = AbortSignal.any([interrupt.signal, options.signal ?? cli.signal])
  const progress = new Progress(cli, options.silent ?? false)
  let job = first
  try {
    progress.show(job)
    let failures = 0
    while (!hasEnded(job)) {
      try {
        job = await api.call(endpoints.jobs.get, { params: { job: job.id }, query: { wait: 1 }, signal })
        failures = 0
      } catch (error) {
        // The daemon may be restarted under a job: the job goes on with it, and so do we.
        const fault = error instanceof WadahError ? error.fault : undefined
        if (signal.aborted || !fault || !['unreachable', 'unavailable'].includes(fault.code) || failures >= 30)
          throw error
        failures += 1
        await new Promise((resolve) => setTimeout(resolve, 1000))
        continue
      }
      options.onJob?.(job)
      progress.show(job)
    }
    return job
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) {
      cli.out.warn(cli.t('job.detached', { id: job.id }))
      throw new Detached('interrupted')
    }
    if (signal.aborted) {
      throw fail('timeout', `Job ${job.id} had not ended in time; it goes on`, {
        remedy: `wadah job wait ${job.id}`,
        effect: 'unknown',
        cause: error,
      })
    }
    throw error
  } finally {
    off()
    progress.clear()
  }
}

/** The fault of a job that did not end well. */
export function jobFault(job: Job): Fault | undefined {
  if (job.state === 'done') return undefined
  if (job.fault) return job.fault as Fault
  const code = job.state === 'cancelled' ? 'cancelled' : 'internal'
  return toFault(fail(code, `Job ${job.id} (${job.kind}) ended as ${job.state}`, { remedy: `wadah job log ${job.id}` }))
}

/**
 * What a verb that answers with a job does with it: waits (or not), prints, and throws the job's fault. With `--json` the job
 * is printed, also a failed one. Returns the ended job, or undefined when it was not waited for.
 */
export async function finish(
  cli: Cli,
  api: Api,
  started: Job,
  done: (job: Job) => string | undefined,
): Promise<Job | undefined> {
  if (!cli.waits && !hasEnded(started)) {
    if (cli.out.isJson) cli.out.json(started)
    else if (cli.options.quiet) cli.out.line(started.id)
    else cli.out.line(cli.t('job.started', { id: started.id }))
    return undefined
  }
  const job = await follow(cli, api, started)
  if (cli.out.isJson) cli.out.json(job)
  const fault = jobFault(job)
  if (fault) {
    if (!cli.out.isJson) cli.out.note(cli.t('job.failed', { id: job.id }))
    throw new WadahError(fault)
  }
  const text = done(job)
  if (text !== undefined && !cli.out.isJson && !cli.options.quiet) cli.out.line(text)
  return job
}
