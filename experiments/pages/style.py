"""The style sheet of reports: one column on a phone, a grid on a laptop, contrast enough to read, dark where asked for.

Pictures keep a white ground, on which their colours were chosen.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #556070; --line: #dfe3e8; --ground: #f6f7f9; --card: #fff;
  --accent: #0067a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ecf1; --soft: #a9b4c2; --line: #37414e; --ground: #12171e; --card: #1b222b; --accent: #6cb8ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: .2rem; }
main:focus { outline: none; }
.skip { position: absolute; left: -100vw; top: 0; padding: .6rem 1rem; background: var(--card); z-index: 2; }
.skip:focus { left: 0; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
header > p { margin: 0; color: var(--soft); font-size: .85rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0 0; padding: 0; }
nav a { display: inline-block; padding: .25rem 0; }
h1 { margin: 0 0 1rem; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 0; }
dl div, section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
dl div { padding: .6rem .9rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
section { margin: 1rem 0; padding: 1.1rem 1.25rem; }
.note { margin: .5rem 0; color: var(--soft); font-size: .9rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: .3rem; }
th, td { padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  max-width: 30rem; unicode-bidi: isolate; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 500; }
tbody th { font-weight: 600; }
.group th { padding-top: 1rem; color: var(--accent); }
.group span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 4rem); }
.wide + .wide { margin-top: 1.25rem; }
.numbers { width: 100%; }
.numbers td { white-space: nowrap; }
.numbers tbody th { min-width: 9rem; }
.numbers small { display: block; }
.best { font-weight: 700; color: var(--accent); }
.best::before { content: "\\2605\\00a0"; }
.tie::before { content: "=\\00a0"; color: var(--accent); font-weight: 700; }
small { color: var(--soft); font-weight: 400; }
td small { white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.curves, .maps, .grids, .plots { display: grid; gap: 1.25rem; }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.maps { grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); }
.curves details { grid-column: 1 / -1; }
.broad img { min-width: var(--least); }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.grids { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .25rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: .35rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: .5rem 0 .75rem; padding: 0;
  font-size: .88rem; }
.legend li { max-width: 100%; }
.legend bdi { overflow-wrap: anywhere; }
.legend > li > span { background: #fff; border-radius: .2rem; padding: 0 .15rem; }
details { margin-top: .75rem; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); padding: .2rem 0; }
pre { overflow-x: auto; background: var(--ground); border-radius: .35rem; padding: .8rem; font-size: .8rem;
  line-height: 1.4; }
@media (min-width: 60rem) {
  .maps figure:only-child { grid-column: 1 / -1; }
  .maps figure:only-child:has(.legend) { display: grid; grid-template-columns: minmax(0, 1fr) fit-content(16rem);
    column-gap: 1.5rem; }
  .maps figure:only-child figcaption { grid-column: 1 / -1; }
  .maps figure:only-child .legend { flex-direction: column; align-self: start; }
}
@media (max-width: 40rem) {
  header, main { padding-left: .8rem; padding-right: .8rem; }
  section { padding: .9rem; }
  h1 { font-size: 1.4rem; }
  dl { grid-template-columns: repeat(2, 1fr); }
  nav a { padding: .5rem 0; }
  .numbers thead th:first-child, .numbers tbody th[scope=row] { position: sticky; left: 0; background: var(--card);
    max-width: 7.5rem; min-width: 7.5rem; overflow-wrap: anywhere; }
  .numbers thead th { max-width: 8rem; }
  .numbers small { white-space: normal; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } nav, .skip { display: none; } }
"""
