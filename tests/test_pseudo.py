"Pseudo targets: one picture, batches, folders."
import json
from types import SimpleNamespace
import pytest, torch
from gen2res.constraints import LowFreq
from gen2res.images import ImageError, load_image, save_image
from gen2res.pseudo import MANIFEST, N_explorer, make_targets, pseudo_numbers, pseudo_targets, restorer_hash
from gen2res.restore import restore
from gen2res.restorers import load_restorer

def photos(n=3): return torch.rand(n,3,16,16, generator=torch.Generator().manual_seed(5))*2-1

def test_the_papers_numbers(faces64):
    assert pseudo_numbers(faces64)==dict(K=211, L=61, N=2, steps=53)
    for bad in (dict(L=-1), dict(N=0)):
        with pytest.raises(ValueError, match='what is held'): pseudo_numbers(faces64, **bad)
    assert pseudo_numbers(faces64, K=100, L=7, N=5)==dict(K=100, L=7, N=5, steps=25) and pseudo_numbers(faces64, steps='10')['steps']==10 and pseudo_numbers(faces64, steps='5,10')['steps']=='5,10'
    assert pseudo_numbers(faces64, K=0)['steps'] is None

def test_is_the_loop_with_a_window(tiny):
    y = photos(); at = dict(K=40, L=10, N=4, steps=20)
    assert torch.equal(pseudo_targets(y, tiny, **at, seeds=3), restore(y, tiny, 40, 20, [LowFreq(y, 4, lo=10)], seeds=3))
    assert torch.equal(pseudo_targets(y, tiny, K=40, L=40, seeds=3), restore(y, tiny, 40, 10, seeds=3))
    assert torch.equal(pseudo_targets(y, tiny, K=0), y)

def test_costs_one_forward_a_step(tiny):
    seen = []
    pseudo_targets(photos(1), tiny, K=40, callback=lambda st: seen.append(st.t))
    assert len(seen)==10 and seen[0]==39

def test_alone_or_in_company(tiny):
    y = photos(); kw = dict(K=40, L=10, N=4)
    assert torch.allclose(pseudo_targets(y, tiny, **kw, seeds=[5,6,7])[1:2], pseudo_targets(y[1:2], tiny, **kw, seeds=[6]), atol=1e-5)

@pytest.fixture
def lq(tmp_path):
    for i,im in enumerate(photos().split(1)): save_image(im, tmp_path/'lq'/f'p{i}.png')
    return tmp_path/'lq'

def test_folder_order_and_company_do_not_matter(tiny, lq, tmp_path):
    kw = dict(K=40, steps=5)
    make_targets(lq, tmp_path/'a', tiny, **kw)
    make_targets([lq/'p2.png', lq/'p0.png'], tmp_path/'b', tiny, batch=1, **kw)
    for n in ('p0', 'p2'): assert (load_image(tmp_path/'a'/f'{n}.png')-load_image(tmp_path/'b'/f'{n}.png')).abs().max() < .01
    made = json.loads((tmp_path/'a'/MANIFEST).read_text())
    assert set(made)=={'p0','p1','p2'} and len({m['seed'] for m in made.values()})==3 and made['p0']['prior']==tiny.fingerprint() and made['p0']['restorer']=='none'

def test_only_what_is_missing_or_was_made_otherwise(tiny, lq, tmp_path, monkeypatch):
    count,real = [],restore
    monkeypatch.setattr('gen2res.pseudo.restore', lambda y, *a, **kw: count.append(len(y)) or real(y, *a, **kw))
    run = lambda **kw: (count.clear(), make_targets(lq, tmp_path/'t', tiny, **(dict(K=40, steps=5)|kw)), sum(count))[2]
    assert run()==3 and run()==0
    (tmp_path/'t'/'p1.png').unlink(); (tmp_path/'t'/'p2.png').write_bytes(b'half a file')
    assert run()==2 and run()==0
    assert run(seed=1)==3 and run(seed=1, N=4)==3 and run(seed=1, N=4)==0
    assert run(seed=1, N=4, restorer=load_restorer('identity'))==3
    save_image(photos().flip(0)[:1], lq/'p0.png', overwrite=True)
    assert run(seed=1, N=4, restorer=load_restorer('identity'))==1

def test_killed_in_the_middle(tiny, lq, tmp_path, monkeypatch):
    import gen2res.pseudo as module
    made,real = [],module.pseudo_targets
    def power_cut(y, *a, **kw):
        if made: raise KeyboardInterrupt
        made.append(1); return real(y, *a, **kw)
    monkeypatch.setattr(module, 'pseudo_targets', power_cut)
    with pytest.raises(KeyboardInterrupt): make_targets(lq, tmp_path/'t', tiny, K=40, steps=5, batch=1)
    assert [p.name for p in (tmp_path/'t').glob('*.png')]==['p0.png']
    first = (tmp_path/'t'/'p0.png').stat().st_mtime_ns; monkeypatch.setattr(module, 'pseudo_targets', real)
    make_targets(lq, tmp_path/'t', tiny, K=40, steps=5, batch=1); make_targets(lq, tmp_path/'whole', tiny, K=40, steps=5, batch=1)
    assert (tmp_path/'t'/'p0.png').stat().st_mtime_ns==first                              # gone on with, not begun anew
    assert all((tmp_path/'t'/p.name).read_bytes()==p.read_bytes() for p in (tmp_path/'whole').iterdir())

def test_the_manifest_names_what_is_there(tiny, lq, tmp_path):
    "Seeds are not lost to a call for fewer photos, or for none."
    listed = lambda: json.loads((tmp_path/'t'/MANIFEST).read_text())
    make_targets(lq, tmp_path/'t', tiny, K=40, steps=5); before = listed()
    assert list(make_targets(lq/'p1.png', tmp_path/'t', tiny, K=40, steps='5'))==['p1'] and listed()==before and len(before)==3   # nor is '5' another number than 5
    for out in ('t', 'new'):
        with pytest.raises(ImageError, match='nowhere'): make_targets(tmp_path/'nowhere', tmp_path/out, tiny, K=40, steps=5, report=lambda line: None)
    assert listed()==before and not (tmp_path/'new').exists()

@pytest.mark.parametrize('kw,line', [(dict(K=40, L=10, N=5), 'N = 5 must divide'), (dict(K=40, steps='5,1'), 'would start at index'),
                                     (dict(K=40, restorer=SimpleNamespace(scale=4, name='x4')), 'x4: enlarges 4 times')])
def test_numbers_that_cannot_be_are_said_before_a_photo_is_read(tiny, lq, tmp_path, monkeypatch, kw, line):
    monkeypatch.setattr('gen2res.pseudo.read_face', lambda *a: pytest.fail('read'))
    with pytest.raises(ValueError, match=line): make_targets(lq, tmp_path/'t', tiny, **kw)
    assert not (tmp_path/'t').exists()

def test_bad_files_cost_a_line(tiny, lq, tmp_path):
    (lq/'no.png').write_bytes(b''); said = []
    assert len(make_targets(lq, tmp_path/'t', tiny, K=10, report=said.append))==3 and len(said)==1 and 'no.png' in said[0]
    (tmp_path/'empty').mkdir()
    with pytest.raises(ImageError, match='no pictures here'): make_targets(tmp_path/'empty', tmp_path/'t', tiny)

def test_restorers_are_told_apart():
    a,b = torch.nn.Linear(2,2),torch.nn.Linear(2,2)
    wrap = lambda m, **kw: type('R', (), dict(model=m, name='r', **kw))()
    assert restorer_hash(None)=='none' and restorer_hash(wrap(a))!=restorer_hash(wrap(b)) and restorer_hash(wrap(a))==restorer_hash(wrap(a)) and restorer_hash(wrap(a, fidelity=.1))!=restorer_hash(wrap(a, fidelity=.9))
    with pytest.raises(ValueError, match='one of load_restorer'): restorer_hash(lambda y: y)

def test_explorer(tiny):
    box = N_explorer(photos(1), tiny, K=20, steps=2); slider,view = box.controls['N'],box.view
    first = view.value; slider.value = 16; assert view.value!=first
    slider.value = 2; assert view.value==first

def test_nobodys_pictures_are_overwritten(tiny, lq):
    before = {p: p.read_bytes() for p in lq.iterdir()}
    with pytest.raises(ValueError, match='not a target'): make_targets(lq, lq, tiny, K=10)
    assert before=={p: p.read_bytes() for p in lq.iterdir()}
