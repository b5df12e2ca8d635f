/** The thread that holds the database. Everything that came in while a commit was under way goes into the next one. */
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { toPlain } from '../errors.ts'
import { Database } from './database.ts'
import { translate } from './errors.ts'
import type { FromWorker, Request, WorkerOptions } from './protocol.ts'
import { serve } from './serve.ts'

if (!parentPort) throw new Error('this file is a worker thread of the store')
const port = parentPort
const options = workerData as WorkerOptions
const send = (message: FromWorker) => port.postMessage(message)

try {
  const database = new Database(options)
  send({ type: 'open', store: database.id, revision: database.revision })
  port.on('message', (first: Request) => {
    const requests = [first]
    for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) {
      requests.push(next.message as Request)
    }
    const close = requests.find((r) => r.op === 'close')
    for (const message of serve(database, requests)) send(message)
    if (close) {
      database.close()
      port.close()
    }
  })
} catch (error) {
  send({ type: 'failed', error: toPlain(translate(error, options.file)) })
  port.close()
}
