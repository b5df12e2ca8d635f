/** A guest that one of the three sides of the comparison moves to and fro. */
export type Moved = {
  /** From the first word to the end of the old QEMU, ms. */
  total: number
  /** From the old QEMU's last STOP to the new one's RESUME, as both stamp them, ms. */
  stall: number
}
export type Guest = {
  sh(script: string): Promise<void>
  move(secure: boolean): Promise<Moved>
  end(): Promise<void>
}

/** When each side's QEMU stopped and let go on last, by its own clock. */
export class Standstill {
  #stop = Number.NaN
  #resume = Number.NaN

  from(event: string, at_ms: number): void {
    if (event === 'STOP') this.#stop = at_ms
  }
  to(event: string, at_ms: number): void {
    if (event === 'RESUME' && Number.isNaN(this.#resume)) this.#resume = at_ms
  }
  get ms(): number {
    return this.#resume - this.#stop
  }
}

/** In the guest: so much RAM holds what is no zeros. */
export const filled = (mib: number) =>
  `mkdir -p /fill; mount -t tmpfs none /fill; dd if=/dev/urandom of=/fill/kept bs=1M count=${mib} 2>/dev/null`

const ON = '/fill/on'
/** So much RAM is written over and over, while it may: of several guests on one machine only the one that is measured works. */
export const writer = (mib: number) =>
  `for i in $(seq ${Math.ceil(mib / 8)}); do dd if=/fill/kept bs=1M count=8; done 2>/dev/null | dd of=/fill/hot bs=1M count=${mib} iflag=fullblock 2>/dev/null
(while :; do if [ -e ${ON} ]; then dd if=/fill/hot of=/fill/hot bs=1M count=${mib} conv=notrunc; else usleep 20000; fi; done) >/dev/null 2>&1 &`
export const writes = (on: boolean) => (on ? `touch ${ON}` : `rm -f ${ON}`)
