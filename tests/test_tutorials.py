"What every tutorial promises: a badge, an install cell, exercises, and links that lead somewhere."
import json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))
def cells(p, kind): return [''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type']==kind]

def prose(p): return p.read_text(encoding='utf-8') if p.suffix=='.md' else '\n'.join(cells(p, 'markdown'))
def headings(p):
    "Anchors as Jupyter writes them for a notebook, GitHub for a text."
    found = re.findall(r'^#+ (.+)$', prose(p), re.M)
    return [re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') if p.suffix=='.md' else h.replace(' ', '-') for h in found]

def test_there_are_six(): assert [p.stem[0] for p in TUTORIALS]==list('123456')

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_shape(path):
    text,code = prose(path),cells(path, 'code')
    assert f'colab.research.google.com/github/gen2res/gen2res/blob/main/nbs/tutorials/{path.name}' in text
    assert 'pip' in code[0] and 'find_spec' in code[0]
    assert text.count('<details><summary>Answer</summary>')>=3 and text.count('<details>')==text.count('</details>')
    assert any('assert' in c for c in code) and 'In depth:' in text

@pytest.mark.parametrize('path', [*TUTORIALS, *sorted((ROOT/'nbs').glob('*.ipynb')), ROOT/'README.md'], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(path)):
        if link.startswith('http'): continue
        file,_,heading = link.partition('#'); there = path.parent/file if file else path
        assert there.exists(), link
        if heading: assert heading in headings(there), link

def test_the_curtain_survives_the_export():
    from nbconvert import HTMLExporter
    import nbformat, torch
    from gen2res.explore import curtain
    cell = nbformat.v4.new_code_cell('', outputs=[nbformat.v4.new_output('display_data', {'text/html': curtain(torch.zeros(1,3,4,4), torch.ones(1,3,4,4)).data})])
    page,_ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert 'type="range"' in page and page.count('data:image/png;base64')>=2 and "setProperty('--at'" in page
