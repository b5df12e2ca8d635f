/** English words about warm images. */
export const warm = {
  'cmd.image.warm': 'boot a template of an image and keep its memory, for instant clones',
  'cmd.image.unwarm': 'delete the warm template of an image',
  'opt.warm.memory': 'memory of the template and of each clone (default 512M, or what the image needs)',
  'opt.warm.cpus': 'CPUs of the template and of each clone (default 1)',
  'opt.instant': 'do not boot: go on from the warm template of the image (wadah image warm)',
  'image.warmed': '{name} is warm: wadah vm create NAME --image {name} --instant',
  'image.unwarmed': '{name} is not warm any more',
  'image.warm': '{cpus} CPUs, {memory}; {ram} kept',
  'col.warm': 'WARM',
} as const
