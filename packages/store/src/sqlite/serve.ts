/** Answers a batch of requests: all writes in one commit, then the reads. */
import { toPlain } from '../errors.ts'
import type { Database } from './database.ts'
import { translate } from './errors.ts'
import type { FromWorker, Reply, Request, TxnJob } from './protocol.ts'

function answer(database: Database, request: Request): unknown {
  switch (request.op) {
    case 'get':
      return database.get(request.key)
    case 'range':
      return database.range(request)
    case 'history':
      return database.history(request.prefix, request.after, request.limit)
    case 'backup':
      return database.backup(request.file)
    default:
      return undefined
  }
}

const isWrite = (r: Request): r is { id: number } & TxnJob => r.op === 'txn' || r.op === 'revoke'

/** To be handed on in this order: first the changes, so that a watch that catches up by reading misses none in between. */
export function serve(database: Database, requests: readonly Request[]): FromWorker[] {
  const writes = requests.filter(isWrite)
  const { outcomes, changes } = database.transact(writes)
  const replies = outcomes.map((outcome, i): Reply => ({ id: (writes[i] as Request).id, ...outcome }))
  const answers = requests
    .filter((r) => !isWrite(r))
    .map((request): Reply => {
      try {
        return { id: request.id, value: answer(database, request) }
      } catch (error) {
        return { id: request.id, error: toPlain(translate(error, database.file)) }
      }
    })
  const { revision } = database
  const written: FromWorker = { type: 'replies', replies, changes, revision }
  return answers.length === 0 ? [written] : [written, { type: 'replies', replies: answers, changes: [], revision }]
}
