"""How the page of a benchmark looks: the package's common look, and what its tables and plots need besides."""

from __future__ import annotations

from msformer_fast.look import style

#: CSS of the page.
STYLE = (
    style(dark_on_screens_only=True)
    + """
body { overflow-wrap: break-word; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
.scroll { overflow-x: auto; margin: 0.5rem 0 1.5rem; padding: 0.25rem 0.75rem; border: 1px solid var(--line);
  border-radius: 0.625rem; background: var(--card); }
table { border-collapse: collapse; font-size: 0.875rem; }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
thead th { vertical-align: bottom; color: var(--quiet); font-weight: 400; }
tbody th { color: var(--quiet); font-weight: 400; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.mark { padding: 0 0.5rem; border-radius: 1rem; background: var(--doubt-back); color: var(--doubt); white-space: nowrap;
  font-size: 0.8125rem; }
.unmeasured td { font-style: italic; }
.summary th:nth-child(n + 4), .predictions th:nth-child(n + 4) { text-align: right; }
.case { min-width: 9rem; }
.reason { min-width: 16rem; }
small, figcaption { color: var(--quiet); }
figure { margin: 0 0 2rem; }
figure svg { max-width: 100%; min-width: 34rem; height: auto; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.125rem 1.25rem; margin: 0.5rem 0 1.5rem; padding: 0; list-style: none; }
summary { width: fit-content; cursor: pointer; color: var(--quiet); }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; font-weight: 600; }
h3 { font-size: 1rem; font-weight: 600; }
@media (max-width: 40rem) { main { padding: 1rem 0.75rem; } .scroll { padding: 0.25rem; } }
@page { size: landscape; margin: 1cm; }
@media print {
  main { max-width: none; }
  nav { display: none; }
  .scroll { overflow: visible; border: 0; padding: 0; }
  table { font-size: 0.6rem; }
  tr, figure { break-inside: avoid; }
  figure svg { min-width: 0; }
}
"""
)
