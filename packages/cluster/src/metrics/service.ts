/**
 * What this host tells Prometheus. Each host tells of itself and of the jobs it carried out, so that a sum over all of them counts nothing twice;
 * what comes to be measured of VMs and of the host belongs into `families` as well.
 */
import { JOB_STATES } from '@wadah/api/schema/job'
import { VM_STATES } from '@wadah/api/schema/vm'
import type { Deps } from '../context.ts'
import { hasEnded, jobKind } from '../jobs/record.ts'
import { hostKind, placementKind, statusKind } from '../records.ts'
import type { MetricsService } from '../services.ts'
import { exposition, type Family } from './exposition.ts'
import { addTallies, emptyTally, moveFamilies, tallyKind, tallyOf, withJob } from './moves.ts'

export class Metrics implements MetricsService {
  readonly #deps: Pick<Deps, 'view' | 'machine' | 'hostId'>
  readonly #version: string

  constructor(deps: Pick<Deps, 'view' | 'machine' | 'hostId'>, version: string) {
    this.#deps = deps
    this.#version = version
  }

  async text(): Promise<string> {
    return exposition(await this.families())
  }

  async families(): Promise<Family[]> {
    const { view, machine, hostId } = this.#deps
    const facts = await machine.facts()
    const own = view.list(jobKind).flatMap(({ value: job }) => (job.executor.host === hostId ? [job] : []))
    const forgotten = tallyOf(view.get(tallyKind, hostId)?.value)
    const moves = addTallies(forgotten, own.reduce(withJob, emptyTally()))
    const placed = view.list(placementKind).filter((p) => p.value.host === hostId)
    const states = new Map<string, number>()
    for (const { id } of placed) {
      const state = view.get(statusKind, id)?.value.state ?? 'stopped'
      states.set(state, (states.get(state) ?? 0) + 1)
    }
    return [
      {
        name: 'wadah_build_info',
        type: 'gauge',
        help: 'Always 1: what this host runs.',
        samples: [
          {
            labels: {
              version: this.#version,
              host: view.get(hostKind, hostId)?.value.name ?? hostId,
              qemu_version: facts.qemu_version,
              accelerator: facts.accelerator,
            },
            value: 1,
          },
        ],
      },
      {
        name: 'wadah_host_maintenance',
        type: 'gauge',
        help: '1: nothing new comes to this host.',
        samples: [{ value: view.get(hostKind, hostId)?.value.maintenance ? 1 : 0 }],
      },
      {
        name: 'wadah_vms',
        type: 'gauge',
        help: 'VMs placed on this host, by state.',
        samples: VM_STATES.map((state) => ({ labels: { state }, value: states.get(state) ?? 0 })),
      },
      {
        name: 'wadah_jobs',
        type: 'gauge',
        help: 'Jobs of this host that are kept, by state; ended ones are forgotten after 30 days, or when there are 5,000.',
        samples: JOB_STATES.map((state) => ({
          labels: { state },
          value: own.filter(
            (job) => (job.cancel_requested && job.state === 'running' ? 'cancelling' : job.state) === state,
          ).length,
        })),
      },
      {
        name: 'wadah_jobs_attention',
        type: 'gauge',
        help: 'Jobs of this host that somebody should look at: what they have to do or undo keeps failing.',
        samples: [{ value: own.filter((job) => job.attention !== undefined && !hasEnded(job)).length }],
      },
      ...moveFamilies(moves),
    ]
  }
}
