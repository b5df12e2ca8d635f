/** What the control group of a VM holds it to. Pure. */
import type { VmSpec } from '@wadah/api/schema/vm'
import type { BootRecord } from '@wadah/ports/machine'
import type { CgroupLimits } from './cgroup.ts'
import { memoryMib } from './memory.ts'
import { memoryCeiling, tbSizeMib } from './state.ts'

/** `mib`: for so much RAM; otherwise for what the VM has. */
export function cgroupLimits(record: BootRecord, spec: VmSpec, mib = memoryMib(record)): CgroupLimits {
  // The translation cache has the size of its start.
  const tb = tbSizeMib(record.accelerator, record.memory.mib)
  return {
    cpu_weight: spec.limits.cpu_weight ?? 100,
    cpu_cap_percent: spec.limits.cpu_cap_percent ?? null,
    memory_bytes: memoryCeiling(mib, tb, spec.limits.memory_overhead_mib),
  }
}
