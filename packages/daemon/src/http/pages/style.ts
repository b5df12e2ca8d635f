export const style = `:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 40rem; padding: 1rem }
header { display: flex; justify-content: space-between; align-items: center }
form { display: grid; gap: .25rem; max-width: 24rem }
label { margin-top: .75rem }
input, button { font: inherit; padding: .4rem .6rem }
form button { margin-top: 1rem }
#language { border: 0; background: none; text-decoration: underline; cursor: pointer; color: inherit }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #8888 }
#message:not(:empty) { border-left: .25rem solid #c60; padding: .25rem .75rem }
[hidden] { display: none }
`
