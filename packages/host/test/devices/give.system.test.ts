/** Nodes change hands and come back. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { give, takeBack } from '../../src/devices/give.ts'

test('the nodes of a VM are its user’s while it runs, nobody else’s, and root’s after', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-nodes-'))
  try {
    const [a, b] = [join(dir, 'a'), join(dir, 'b')]
    // As /dev/null: a node of this number can be made where nodes can be made at all.
    for (const node of [a, b]) execFileSync('mknod', [node, 'c', '1', '3'])
    await give([a], 7001)
    await give([a], 7001)
    expect(statSync(a).uid).toBe(7001)
    await expect(give([a], 7002)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await expect(give([join(dir, 'none')], 7002)).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    await give([b], 7002)
    // Told to take back both: the one that is another's by now stays his.
    await takeBack({ uid: 7001, nodes: [a, b, join(dir, 'none')] })
    expect([statSync(a).uid, statSync(b).uid]).toEqual([0, 7002])
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
})
