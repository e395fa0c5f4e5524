"""The style sheet of a page: one column on a phone, two or three on a desk, plain on paper."""

CSS = """
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main, header, footer { max-width: 1160px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 40px); }
header { padding-top: 40px; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 6px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0 0 8px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 74ch; }
a { color: var(--series-0); }
.subtitle, figcaption, .intro, footer, .fact small { color: var(--muted); }
.subtitle { margin-bottom: 20px; overflow-wrap: anywhere; }
.summary { font-size: 1.12rem; max-width: 68ch; margin-bottom: 24px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 0 0 24px; }
.fact { border: 1px solid var(--grid); border-radius: 10px; padding: 12px 14px; margin: 0; }
.fact dt { color: var(--muted); font-size: 0.83rem; }
.fact dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; letter-spacing: -0.01em; }
.fact small { display: block; font-size: 0.83rem; font-weight: 400; letter-spacing: 0; line-height: 1.4; }
nav {
  display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 10px 0;
  border-block: 1px solid var(--grid); font-size: 0.92rem;
}
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding: 36px 0 4px; scroll-margin-top: 8px; }
.intro { margin-bottom: 18px; }
.blocks {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 30px 40px; align-items: start;
}
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figcaption { font-size: 0.88rem; line-height: 1.45; margin-top: 8px; max-width: 60ch; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 22px 6px 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; border-bottom-color: var(--rule); }
.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 5em; }
details summary { cursor: pointer; font-weight: 600; }
pre {
  overflow-x: auto; font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  border: 1px solid var(--grid); border-radius: 10px; padding: 14px 16px; margin: 10px 0 0;
}
footer { padding-block: 40px 48px; font-size: 0.88rem; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  body { font-size: 15px; }
  header { padding-top: 24px; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .fact dd { font-size: 1.25rem; }
  th, td { padding-right: 14px; }
}
@media print {
  html { color-scheme: light; }
  body { font-size: 10pt; }
  nav { display: none; }
  main, header, footer { max-width: none; padding-inline: 0; }
  .blocks { grid-template-columns: repeat(2, 1fr); gap: 18px 24px; }
  figure, .fact, tr { break-inside: avoid; }
  h2, h3, .intro { break-after: avoid; }
  section { padding-top: 20px; }
  .facts { grid-template-columns: repeat(3, 1fr); }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: 3px 12px 3px 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
