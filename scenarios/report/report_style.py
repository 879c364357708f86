"""The style of the report's page: light or dark as the reader's system has it, no file or font loaded."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --text: #1c2330; --soft: #5d6a7e; --line: #dde2ea;
  --good: #1a7f4b; --bad: #c4314b; --accent: #2f6fd6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1b212b; --text: #e6eaf1; --soft: #98a4b8; --line: #303947;
    --good: #4cc38a; --bad: #ff7b8e; --accent: #7aaeff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem; }
header { border-left: .4rem solid var(--good); margin-top: 1.5rem; }
header.bad { border-color: var(--bad); }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: 1.6rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h3 { font-size: .95rem; margin: 1rem 0 .25rem; color: var(--accent); }
header .verdict { font-size: 1.15rem; font-weight: 600; color: var(--good); }
header.bad .verdict { color: var(--bad); }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
section { padding: 1rem 1.25rem; margin: 1rem 0; }
section.tiles { display: flex; flex-wrap: wrap; gap: 1rem; background: none; border: 0; padding: 0; }
.tile { flex: 1 1 8rem; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.5rem; }
.tile span { color: var(--soft); }
.wide { overflow-x: auto; }
figure { margin: 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 40rem; height: auto; color: var(--text); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border: 0; }
tr.failed td { background: color-mix(in srgb, var(--bad) 12%, transparent); }
.facts th { width: 12rem; border-top: 1px solid var(--line); }
.checks td:first-child { width: 1.5rem; }
.checks td:nth-child(2) { width: 38%; }
.evidence { font-family: ui-monospace, monospace; font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
span.good, td.good, tr.good td { color: var(--good); }
span.bad, td.bad, tr.bad td { color: var(--bad); }
.none { color: var(--soft); margin: 0; }
summary { cursor: pointer; color: var(--soft); }
"""
