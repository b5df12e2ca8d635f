/** The thread that holds the database. Everything that came in while a commit was under way goes into the next one. */
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { toPlain } from '../errors.ts'
import { Database } from './database.ts'
import { translate } from './errors.ts'
import type { FromWorker, Reply, Request, TxnJob, WorkerOptions } from './protocol.ts'

if (!parentPort) throw new Error('this file is a worker thread of the store')
const port = parentPort
const options = workerData as WorkerOptions
const send = (message: FromWorker) => port.postMessage(message)

function answer(database: Database, request: Request): unknown {
  switch (request.op) {
    case 'get':
      return database.get(request.key)
    case 'range':
      return database.range(request)
    case 'history':
      return database.history(request.prefix, request.after, request.limit)
    default:
      return undefined
  }
}

const isWrite = (r: Request): r is { id: number } & TxnJob => r.op === 'txn' || r.op === 'revoke'

function serve(database: Database, requests: Request[]): void {
  const writes = requests.filter(isWrite)
  const { outcomes, changes } = database.transact(writes)
  const replies: Reply[] = outcomes.map((outcome, i) => ({ id: (writes[i] as Request).id, ...outcome }))
  // First the changes, then what is read after them: a watch that catches up by reading must not miss any in between.
  send({ type: 'replies', replies, changes, revision: database.revision })
  const reads = requests.filter((r) => !isWrite(r))
  if (reads.length === 0) return
  const answers = reads.map((request): Reply => {
    try {
      return { id: request.id, value: answer(database, request) }
    } catch (error) {
      return { id: request.id, error: toPlain(translate(error, options.file)) }
    }
  })
  send({ type: 'replies', replies: answers, changes: [], revision: database.revision })
}

try {
  const database = new Database(options)
  send({ type: 'open', store: database.id, revision: database.revision })
  port.on('message', (first: Request) => {
    const requests = [first]
    for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) {
      requests.push(next.message as Request)
    }
    const close = requests.find((r) => r.op === 'close')
    serve(database, requests)
    if (close) {
      database.close()
      port.close()
    }
  })
} catch (error) {
  send({ type: 'failed', error: toPlain(translate(error, options.file)) })
  port.close()
}
