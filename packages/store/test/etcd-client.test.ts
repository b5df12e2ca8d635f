/** What the client of etcd decides: how long it tries, and whom it takes for the leader. */
import { leading, tryMs } from '@wadah/store/etcd/client'
import { expect, test } from 'vitest'

test.each([
  [1, 1_000, [500, 1_000, 1_000, 1_000]],
  [3, 1_000, [500, 500, 500, 1_000, 1_000]],
  [3, 16_000, [500, 500, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 16_000]],
])('%s members, %s ms at most', (members, most_ms, wanted) => {
  expect(wanted.map((_, tried) => tryMs(tried, members, most_ms))).toEqual(wanted)
  expect(tryMs(10_000, members, most_ms)).toBe(most_ms)
})

const says = (member: string, leader: string, term = 1) => ({
  header: { cluster_id: 'c', revision: '1', member_id: member },
  leader,
  raftTerm: String(term),
})
test.each([
  ['the one that says so of itself', [says('a', 'b'), says('b', 'b'), says('c', 'b')], 1],
  ['nobody, when the leader is silent', [undefined, says('b', 'a'), says('c', 'a')], undefined],
  ['nobody during an election', [says('a', '0'), undefined, says('c', '0')], undefined],
  ['the later term, when one was cut off', [says('a', 'a', 3), says('b', 'b', 4), says('c', 'b', 4)], 1],
  ['nobody, when nobody answers', [undefined, undefined], undefined],
])('who leads: %s', (_, replies, at) => expect(leading(replies)).toBe(at))
