/** Six colours that can be told apart on white and on black, also with a colour vision deficiency (Okabe and Ito). */
const light = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b8860b', '#56b4e9']
const dark = ['#56b4e9', '#e69f00', '#2bbf96', '#e093bf', '#f0e442', '#7fb2d9']

const colours = (values: readonly string[]): string =>
  values.map((value, index) => `--c${index}:${value}`).join(';')

const classes = light.map((_, index) => `.c${index}{--colour:var(--c${index})}`).join('')

export const style = `
:root{color-scheme:light dark;--back:#fff;--text:#1a1a1a;--faint:#666;--rule:#ddd;${colours(light)}}
@media (prefers-color-scheme:dark){:root{--back:#141414;--text:#e6e6e6;--faint:#a0a0a0;--rule:#383838;${colours(dark)}}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1rem;background:var(--back);color:var(--text);
font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:0}
h2{font-size:1.1rem;margin:2.5rem 0 .5rem;padding-top:.8rem;border-top:1px solid var(--rule)}
a{color:var(--c0)}
.note,figcaption,.legend,thead{color:var(--faint)}
nav ol{padding-left:1.4rem}
.table{overflow-x:auto;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
tbody th{font-weight:normal}
thead th{font-weight:normal}
.number{text-align:right;white-space:nowrap}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem;margin-top:1rem}
figure{margin:0}
figcaption{font-size:.9rem}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--faint);font-size:12px}
.grid{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke:var(--colour);stroke-width:2;stroke-linejoin:round}
.area{fill:var(--colour)}
.legend{list-style:none;margin:.2rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem}
.legend span{display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:var(--colour)}
${classes}
`
