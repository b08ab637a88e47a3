"""The style sheet of reports: one column on a phone, a grid on a laptop, contrast enough to read, good on paper."""

STYLE = """
:root { --ink: #1b2430; --soft: #5b6675; --line: #dfe3e8; --ground: #f6f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
header > p { margin: 0; color: var(--soft); font-size: .85rem; }
h1 { margin: 0 0 1rem; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 0; }
dl div, section { background: #fff; border: 1px solid var(--line); border-radius: .5rem; }
dl div { padding: .6rem .9rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
section { margin: 1rem 0; padding: 1.1rem 1.25rem; }
.note { margin: .5rem 0; color: var(--soft); font-size: .9rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 500; }
tbody th { font-weight: 600; }
.scores td { white-space: nowrap; }
.best { font-weight: 700; color: var(--accent); }
small { color: var(--soft); font-weight: 400; }
.facts td { overflow-wrap: anywhere; }
.curves, .maps { display: grid; gap: 1.25rem; }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.maps { grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .25rem; }
img { display: block; width: 100%; height: auto; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: .5rem 0 0; padding: 0;
  font-size: .88rem; }
details { margin-top: .75rem; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
pre { overflow-x: auto; background: var(--ground); border-radius: .35rem; padding: .8rem; font-size: .8rem;
  line-height: 1.4; }
@media (min-width: 60rem) {
  .maps figure:only-child { display: grid; grid-template-columns: minmax(0, 38rem) 1fr; grid-column: 1 / -1;
    column-gap: 1.5rem; }
  .maps figure:only-child figcaption { grid-column: 1 / -1; }
  .maps figure:only-child .legend { flex-direction: column; }
}
@media (max-width: 40rem) {
  header, main { padding-left: .8rem; padding-right: .8rem; }
  section { padding: .9rem; }
  h1 { font-size: 1.4rem; }
  dl { grid-template-columns: repeat(2, 1fr); }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
