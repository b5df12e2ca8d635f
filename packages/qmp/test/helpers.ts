import { afterEach } from 'vitest'
import { type Qmp, type QmpOptions, attachQmp } from '@wadah/qmp/client'
import { QmpError } from '@wadah/qmp/errors'
import { FakeQemu, type FakeQemuOptions } from '@wadah/qmp/testing/fake-qemu'

const open: { close(): unknown }[] = []

afterEach(async () => {
  for (const thing of open.splice(0).toReversed()) await thing.close()
})

/** Closed when the test ends, however it ends. */
export function closing<T extends { close(): unknown }>(thing: T): T {
  open.push(thing)
  return thing
}

/** A negotiated connection, in memory, to a fake that answers as told. */
export async function connected(
  fake: FakeQemuOptions = {},
  options: QmpOptions = {},
): Promise<{ qemu: FakeQemu; qmp: Qmp }> {
  const qemu = closing(new FakeQemu(fake))
  const qmp = closing(await attachQmp(qemu.stream(), options))
  return { qemu, qmp }
}

/** What a promise that must fail fails with. */
export async function failure(promise: Promise<unknown>): Promise<QmpError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof QmpError) return error
    throw error
  }
  throw new Error('it succeeded')
}

/** `bytes` cut into chunks of the sizes that come. */
export function* cutAt(bytes: Buffer, sizes: Iterator<number>): Generator<Buffer> {
  for (let from = 0; from < bytes.length; ) {
    const size = Math.max(1, Number(sizes.next().value))
    yield bytes.subarray(from, from + size)
    from += size
  }
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}
