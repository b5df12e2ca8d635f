import { LEVEL, OLDEST_LEVEL } from '@wadah/cluster/members/records'
import type { Build } from '@wadah/cluster/records'

/** Of the product; the same as in package.json, which a test compares. */
export const VERSION = '0.1.0'

/** As the other hosts of a cluster know it. */
export const BUILD: Build = { version: VERSION, oldest: OLDEST_LEVEL, newest: LEVEL }
