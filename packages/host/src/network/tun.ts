/** The device that taps are opened by. */
import { chmod, stat } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import { errno } from '../system/files.ts'

export const TUN = '/dev/net/tun'

/**
 * QEMU opens /dev/net/tun as the VM's own uid. udev's stock rule makes it 0666: the kernel lets nobody touch a tap that is not theirs
 * and nobody make one without CAP_NET_ADMIN, so the mode guards nothing. Where no udev was at work, the same is set here.
 */
export async function allowTun(note: (key: string, text: string, remedy?: string) => void): Promise<void> {
  const seen = await stat(TUN).catch((error: unknown) => {
    throw fail('host_lacks', `${TUN} can't be used (${errno(error)}): the kernel module tun is missing.`, {
      remedy: 'modprobe tun',
    })
  })
  if ((seen.mode & 0o006) === 0o006) return
  await chmod(TUN, 0o666)
  note(
    'tun',
    `${TUN} was closed to ordinary users and now has mode 0666, as udev's stock rule gives it: QEMU runs without root and opens its own tap by it.`,
  )
}
