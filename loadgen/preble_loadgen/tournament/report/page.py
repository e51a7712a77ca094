"""What makes the report's page readable: its style, and the script of its legend."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --soft: #5b6675; --line: #d9dee6;
  --mark: #fbe9e1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --paper: #14181f; --soft: #9aa5b4; --line: #333b47; --mark: #45281c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { border-bottom: 1px solid var(--line); margin-top: 3rem; }
p { max-width: 52rem; } a { color: inherit; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem;
  color: var(--soft); }
.facts dd { margin: 0; font-family: ui-monospace, monospace; font-size: .85rem;
  overflow-wrap: anywhere; }
nav h2 { margin-top: 1rem; font-size: 1.1rem; border: 0; }
.wide { overflow: auto; max-height: 40rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { position: sticky; top: 0; background: var(--paper); }
.n { text-align: right; white-space: nowrap; }
tr.strong { background: var(--mark); font-weight: 600; }
figure { margin: 1.5rem 0; } figcaption { max-width: 52rem; margin-bottom: .4rem; }
figure svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
summary { cursor: pointer; margin: .6rem 0; color: var(--soft); }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .25rem;
  padding: .4rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
.legend:empty { display: none; }
.legend button { font: inherit; font-size: .75rem; color: inherit; background: none;
  cursor: pointer; border: 1px solid var(--line); border-radius: 1rem; padding: 0 .55rem; }
.legend button[aria-pressed=true] { background: var(--mark); }
.legend span { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .35em; }
.dim { opacity: .1; }
@media print { .legend { display: none; } }
"""

SCRIPT = """
let chosen = null;
for (const button of document.querySelectorAll('.legend button')) {
  button.onclick = () => {
    chosen = chosen === button.dataset.policy ? null : button.dataset.policy;
    for (const other of document.querySelectorAll('.legend button'))
      other.setAttribute('aria-pressed', other.dataset.policy === chosen);
    for (const mark of document.querySelectorAll('svg [data-policy]'))
      mark.classList.toggle('dim', chosen !== null && mark.dataset.policy !== chosen);
  };
}
"""
