"Every module has its notebook, and every notebook that names a module has it exported. Run by CI; exits 1 with a list."
import json, re, sys
from pathlib import Path
root = Path(__file__).parent.parent
named = {m[1] for p in (root/'nbs').rglob('*.ipynb') for c in json.loads(p.read_text())['cells'] if (m := re.search(r'#\| default_exp (\w+)', ''.join(c['source'])))}
modules = {p.stem for p in (root/'gen2res').glob('*.py') if not p.name.startswith('_')}
if named!=modules: sys.exit(f'modules without a notebook: {sorted(modules-named)}; notebooks without a module: {sorted(named-modules)}')
print(f'{len(modules)} modules, each with its notebook')
