"What every tutorial promises: a badge, an install cell, exercises, and links that lead somewhere."
import json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))
def cells(p, kind): return [''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type']==kind]

def test_there_are_six(): assert [p.stem[0] for p in TUTORIALS]==list('123456')

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_shape(path):
    prose,code = '\n'.join(cells(path, 'markdown')),cells(path, 'code')
    assert f'colab.research.google.com/github/gen2res/gen2res/blob/main/nbs/tutorials/{path.name}' in prose
    assert 'pip' in code[0] and 'find_spec' in code[0]
    assert prose.count('<details><summary>Answer</summary>')>=3 and prose.count('<details>')==prose.count('</details>')
    assert any('assert' in c for c in code) and 'In depth:' in prose

@pytest.mark.parametrize('path', [*TUTORIALS, *sorted((ROOT/'nbs').glob('*.ipynb')), ROOT/'README.md'], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding='utf-8') if path.suffix=='.md' else '\n'.join(cells(path, 'markdown'))
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if not link.startswith(('http', '#')): assert (path.parent/link.split('#')[0]).exists(), link

def test_the_curtain_survives_the_export():
    from nbconvert import HTMLExporter
    import nbformat, torch
    from gen2res.explore import curtain
    cell = nbformat.v4.new_code_cell('', outputs=[nbformat.v4.new_output('display_data', {'text/html': curtain(torch.zeros(1,3,4,4), torch.ones(1,3,4,4)).data})])
    page,_ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert 'type="range"' in page and page.count('data:image/png;base64')>=2 and "setProperty('--at'" in page
