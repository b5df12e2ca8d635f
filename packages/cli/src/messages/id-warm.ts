/** Indonesian words about warm images. */
export const warm = {
  'cmd.image.warm': 'nyalakan templat dari sebuah citra dan simpan memorinya, untuk klona sekejap',
  'cmd.image.unwarm': 'hapus templat hangat dari sebuah citra',
  'opt.warm.memory': 'memori templat dan setiap klona (bawaan 512M, atau yang dibutuhkan citra)',
  'opt.warm.cpus': 'CPU templat dan setiap klona (bawaan 1)',
  'opt.instant': 'jangan boot: lanjutkan dari templat hangat citra (wadah image warm)',
  'image.warmed': '{name} sudah hangat: wadah vm create NAMA --image {name} --instant',
  'image.unwarmed': '{name} tidak hangat lagi',
  'image.warm': '{cpus} CPU, {memory}; {ram} disimpan',
  'col.warm': 'HANGAT',
} as const
