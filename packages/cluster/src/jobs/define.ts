/**
 * Jobs as data: named steps, each with what it does and how that is undone. See docs/jobs.md.
 *
 * The rules a step keeps (the harness in `testing.ts` tries them):
 * - `do` looks before it acts: run twice it leaves what running once leaves, also after it was cut off in the middle;
 * - `undo` accepts a `do` that never began, was cut off, or is undone already;
 * - `do` and `undo` end soon after `signal` aborts (an `undo` is only aborted when the daemon stops).
 */
import type { Fault } from '@wadah/api/fault'
import type { Clock } from '@wadah/store/clock'
import type { Check, Write } from '@wadah/store/store'

/** What a job acts on. */
export type Target = { kind: string; id: string; name?: string }

/** `fraction` 0 … 1, or an amount; `unit` is `bytes` unless said. */
export type Progress = number | { done: number; total: number; unit?: string }

export interface StepContext<P, D> {
  readonly params: P
  /** Daemon services handed to the engine. */
  readonly deps: D
  readonly jobId: string
  /** Who asked. */
  readonly subject: string
  readonly target: Target
  /**
   * Aborts when the job is cancelled (`do` only), the daemon stops, or another executor took the job over. Throw its reason,
   * or anything, soon.
   */
  readonly signal: AbortSignal
  readonly clock: Clock
  /** How often this step was begun by this daemon, from 1. */
  readonly attempt: number
  /** The output of an earlier step (in `undo`: of its own too); undefined when it was skipped, or never finished. */
  readonly output: {
    <O>(step: Step<P, D, O>): O | undefined
    <O = unknown>(step: string): O | undefined
  }
  /** One line for the job's log file. Never a secret. */
  readonly log: (line: string) => void
  /** How far this step is. Volatile: for who watches now. */
  readonly progress: (p: Progress) => void
  /**
   * Writes to be committed together with the end of this step (or undo), in one transaction: either the step has ended and they
   * are there, or neither. A check that fails fails the step with `conflict`.
   */
  readonly commit: (writes: readonly Write[], checks?: readonly Check[]) => void
}

/** How often and how fast a step is tried again after a fault that says `retryable`. Delays double from `base_ms` to `cap_ms`. */
export type Retry = { attempts: number; base_ms: number; cap_ms: number }

export type StepSpec<P, D, O = unknown> = {
  /** What it returns is kept with the job as JSON (up to 64 KiB) once the step has ended. */
  do: (ctx: StepContext<P, D>) => Promise<O> | O
  undo?: (ctx: StepContext<P, D>) => Promise<void> | void
  /** False: the step is skipped. Pure: it is asked again after a restart. */
  when?: (params: P, output: (step: string) => unknown) => boolean
  /** Its share of the job's percent, default 1. */
  weight?: number
  /** The unit of its progress, for display. */
  progress?: 'fraction' | 'bytes'
  /** Before the pivot: default no second try. From the pivot on it is tried until it works; only the delays count. */
  retry?: Retry
  /** Doing it again after a crash is harmless and quick: its end is not committed by itself. */
  volatile?: boolean
  /**
   * After the pivot only: what to do about a fault that trying again can't help. Returns the step's output; the job goes on, with
   * the fault kept as a warning. Without it such a step is tried again, ever more slowly, and shown as needing attention.
   */
  resolve?: (ctx: StepContext<P, D>, why: Fault) => Promise<O> | O
}

export type Step<P, D, O = unknown> = { readonly name: string; readonly pivot: boolean } & StepSpec<P, D, O>

/** A list of steps of different outputs. */
export type AnyStep<P, D> = Step<P, D, any>

/** One step: `do`, and the way back. */
export function step<P, D, O = unknown>(name: string, spec: StepSpec<P, D, O>): Step<P, D, O> {
  return { name, pivot: false, ...spec }
}

/**
 * The point of no return: before it the job undoes, from it on it only goes forward. A pivot that fails with effect `none` has not
 * happened, and the job undoes; any other failure may be half done and is tried again.
 */
export function pivot<P, D, O = unknown>(
  name: string,
  spec: Omit<StepSpec<P, D, O>, 'undo' | 'volatile' | 'when'>,
): Step<P, D, O> {
  return { name, pivot: true, ...spec }
}

export type JobOptions<P> = {
  /** A job cut off by a crash of the daemon is carried on (default), or undone if its pivot was not reached. */
  onCrash?: 'continue' | 'undo'
  /** Keys held by the job from submit to end: `vm/<id>`. Another job that wants one is refused with `busy`. */
  claims?: (params: P, target: Target) => readonly string[]
  /** Jobs of one lane share a limit on how many run at once (`EngineOptions.lanes`); default: lane `default`. */
  lane?: string
  /** What the job as a whole answers; default: the output of its last step. */
  result?: (output: (step: string) => unknown, params: P) => unknown
}

export type JobDefinition<P, D> = {
  readonly name: string
  /** Raised when steps are added, removed, renamed or reordered; a version that can still be in a store stays registered. */
  readonly version: number
  /** Reads and checks parameters; throws a WadahError `invalid` naming the field. */
  readonly parse: (value: unknown) => P
  readonly steps: readonly AnyStep<P, D>[]
  /** Index of the pivot; the number of steps when there is none. */
  readonly pivotAt: number
} & JobOptions<P>

/**
 * Declares a job; give both type arguments, so that the steps are typed: `defineJob<CloneVm, Deps>(…)`. `parse` is a guard or validator of its parameters (plain JSON); it runs at submit and again at resume.
 * @throws TypeError when the steps contradict each other: a mistake in the program
 */
export function defineJob<P, D>(
  name: string,
  version: number,
  parse: (value: unknown) => P,
  steps: readonly AnyStep<P, D>[],
  options: JobOptions<P> = {},
): JobDefinition<P, D> {
  const wrong = (why: string) => new TypeError(`job ${name}@${version}: ${why}`)
  if (!/^[a-z][a-z0-9]*([.-][a-z0-9]+)*$/.test(name)) throw wrong('a name is small letters, digits, dots and hyphens')
  if (!Number.isSafeInteger(version) || version < 1) throw wrong('the version is a whole number from 1')
  if (steps.length === 0) throw wrong('it has no steps')
  const pivots = steps.filter((s) => s.pivot).length
  if (pivots > 1) throw wrong('it has more than one pivot')
  const found = steps.findIndex((s) => s.pivot)
  const pivotAt = found < 0 ? steps.length : found
  steps.forEach((s, i) => {
    if (!/^[a-z][a-z0-9-]*$/.test(s.name)) throw wrong(`step "${s.name}": a name is small letters, digits and hyphens`)
    if (steps.findIndex((t) => t.name === s.name) !== i) throw wrong(`two steps are called "${s.name}"`)
    if (i >= pivotAt && s.undo) throw wrong(`step "${s.name}" has an undo, but lies after the pivot`)
    if (i <= pivotAt && s.resolve) throw wrong(`step "${s.name}" has a resolve, but does not lie after the pivot`)
  })
  return { name, version, parse, steps, pivotAt, ...options }
}

/** Definitions of all parameter types live in one registry. */
export type AnyDefinition<D> = JobDefinition<any, D>
