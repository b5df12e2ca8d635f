import { WadahError } from '@wadah/api/fault'

/** What a refused text is told; fails when it is taken. */
export const refusal = (f: () => unknown): string => {
  try {
    f()
  } catch (error) {
    if (error instanceof WadahError) return error.fault.detail
    throw error
  }
  throw new Error('was not refused')
}
