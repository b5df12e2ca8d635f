/** etcd's refusals in the store's words. Its codes are coarse; its texts are stable (etcd, api/v3rpc/rpctypes/error.go). */
import { type ServiceError, status as code } from '@grpc/grpc-js'
import { StoreError } from '../errors.ts'

const isService = (error: unknown): error is ServiceError =>
  error instanceof Error && typeof (error as ServiceError).code === 'number' && 'details' in error

/** A revision that is forgotten, or that is not yet. */
export const isOutOfRange = (error: unknown): boolean => isService(error) && error.code === code.OUT_OF_RANGE

export const isNoLease = (error: unknown): boolean =>
  isService(error) && error.code === code.NOT_FOUND && error.details.includes('lease')

export function translate(error: unknown): unknown {
  if (!isService(error)) return error
  const said = `etcd refused it: ${error.details}`
  if (isNoLease(error))
    return new StoreError({
      kind: 'lease_lost',
      detail: 'the lease has ended',
      remedy: 'Take a new lease first.',
      cause: error,
    })
  if (error.code === code.RESOURCE_EXHAUSTED && error.details.includes('space exceeded'))
    return new StoreError({
      kind: 'no_room',
      detail: 'etcd has reached its quota and takes no more writes',
      remedy: 'etcdctl endpoint status --cluster',
      cause: error,
    })
  if (/too large|larger than max|too many operations/.test(error.details))
    return new StoreError({ kind: 'too_large', detail: said, cause: error })
  return new StoreError({ kind: 'io', detail: said, retryable: true, cause: error })
}
