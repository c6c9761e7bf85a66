"The explorers: what they draw, what they remember, and that they answer without being watched."
import time
import numpy as np, pytest, torch
from gen2res.explore import (Background, Lab, album_explorer, averaged, curtain, detail, export_sweep, guidance_explorer, job_path, K_explorer, kl_curves_explorer, prior_explorer,
    pseudo_explorer, read_rows, render_album, render_guidance, render_K, render_kl, render_prior, render_pseudo, render_restorer, restorer_explorer, sweep, sweep_figure)
from gen2res.images import as_picture, choice, explorer, show
from gen2res.restorers import load_restorer

FAST = dict(iters=2, batch=2, lr=1e-4)

@pytest.fixture
def photo(): return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))*2-1

@pytest.fixture
def lab(tiny, photo, tmp_path): return Lab(photo, tiny, photo.flip(-1), steps=2, tuning=FAST, album_steps=2, folder=tmp_path)

def curve(box, panel=-1): return box.drawn.axes[panel].lines[0].get_xydata()

def test_sweep_is_tidy(tmp_path):
    rows = sweep(dict(a=[1, 2], b=[10, 20, 30]), lambda a, b: a*b)
    assert len(rows)==6 and rows[4]==dict(a=2, b=20, value=40)
    assert [r['value'] for r in averaged(rows, 'a', 'value')]==[20, 40] and averaged(rows, 'a', 'value')[0]['low']<20
    several = averaged(rows, 'a', 'value', by='b')
    assert len(several)==6 and all(r['low']==r['value']==r['high'] for r in several)
    fig = sweep_figure(rows, 'a', ['value'], by='b')
    assert [list(l.get_ydata()) for l in fig.axes[0].lines]==[[10, 20], [20, 40], [30, 60]]
    paths = export_sweep(rows, fig, tmp_path/'deep'/'t')
    assert read_rows(paths[0])==rows and all(p.stat().st_size>40 for p in paths) and paths[2].read_text().startswith('<?xml')

def test_every_experiment_is_done_once(lab, monkeypatch):
    job = lab.restored(K=50)
    first = lab(job)['x']
    monkeypatch.setattr(lab, '_do', lambda **k: pytest.fail('done twice'))
    assert lab(job)['x'] is first and lab.has(job)
    again = Lab(lab.photo, lab.prior, steps=2, folder=lab.folder); monkeypatch.setattr(again, '_do', lambda **k: pytest.fail('done twice'))
    assert torch.equal(again(job)['x'], first)                          # from the disk

def test_what_determines_a_result_is_in_its_name(lab, tiny):
    other = Lab(lab.photo.flip(-2), tiny, steps=2, tuning=FAST, album_steps=2, folder=lab.folder)
    path = lambda l, j: job_path(l.folder, j)
    assert path(lab, lab.restored(5))!=path(other, other.restored(5))
    album = torch.rand(4, 3, 16, 16)*2-1
    lab.album = album; a = lab.constrained('personal', 2); lab.album = album.flip(-1); b = lab.constrained('personal', 2)
    assert path(lab, a)!=path(lab, b) and path(lab, lab.constrained('personal', 2, every=20))==path(lab, b)   # a personal album is not guided
    plain = path(lab, lab.target(5, 1, 2)); lab.restorer = load_restorer('swinir64', device='cpu')
    assert path(lab, lab.target(5, 1, 2))!=plain

def test_a_lab_without_a_folder_leaves_nothing(tiny, photo):
    lab = Lab(photo, tiny, steps=2); lab(lab.restored(5)); folder = lab.folder
    assert any(folder.iterdir())
    lab.tmp.cleanup(); assert not folder.exists()

def test_without_the_truth(tiny, photo, tmp_path):
    lab = Lab(photo, tiny, steps=2, folder=tmp_path)
    assert set(lab.measured(photo))=={'dB to the photo','fine detail, dB'} and lab.measured(photo)['dB to the photo']==60
    assert len(render_K(lab, 10).axes)==2+2

def test_detail(photo):
    from gen2res.filters import lowpass
    assert detail(lowpass(photo, 4)) < detail(photo)-3

def test_K_explorer(lab):
    box = K_explorer(lab, recipes=('plain','ilvr')); box.work.join(60)
    assert box.work.count.value==len(lab.Ks) and box.note.value==''
    box.controls['K'].value = lab.Ks[3]
    assert np.array_equal(curve(box)[:,0], sorted(lab.Ks))
    at = box.drawn.axes[-1].lines[1].get_xydata()[0]
    assert at[0]==lab.Ks[3] and at[1]==pytest.approx(lab.measured(lab(lab.restored(lab.Ks[3]))['x'])['spectrum'])
    seen = box.view.value; box.controls['seed'].value = 3; assert box.view.value!=seen
    box.controls['recipe'].value = 'ilvr'; assert 'ilvr' in box.drawn.axes[1].get_title()

def test_a_cached_slider_answers_at_once(lab):
    box = K_explorer(lab, recipes=('plain',)); box.work.join(60)
    start = time.monotonic(); box.controls['K'].value = lab.Ks[-2]
    assert time.monotonic()-start < 5                                       # under one second on an idle machine; a busy one may be slower

def test_guidance_explorer(lab):
    box = guidance_explorer(lab, everys=(0, 1), scales=(0., 1.)); box.work.join(60)
    box.controls['every'].value = 1; box.controls['scale'].value = 1.
    assert list(curve(box)[:,0])==[0, 1]
    assert torch.equal(lab(lab.drawn(1, 0.))['x'], lab(lab.drawn(0, 1.))['x'])   # scale 0 and never are the same walk

def test_album_explorer(lab):
    lab.album = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2-1
    box = album_explorer(lab, sizes=(1, 4, 16), everys=(1,)); box.work.join(120)
    assert box.work.count.value==4 and box.controls['n'].options==(1, 4)   # the person's album has only four
    assert list(curve(box)[:,0])==[1, 4]
    box.controls['source'].value = 'personal'; assert 'personal' in box.drawn.axes[1].get_title()
    with pytest.raises(ValueError, match='K must be one of'): render_album(lab, 1, K=7, every=1)
    lab.album = None
    with pytest.raises(ValueError, match='no album'): render_album(lab, 1, source='personal')

def test_pseudo_explorer(lab):
    lab.restorer = load_restorer('swinir64', device='cpu')
    box = pseudo_explorer(lab, Ns=(2, 4)); box.work.join(60)
    box.controls['N'].value = 4
    assert list(curve(box, 4+1)[:,0])==[2, 4]
    bars = box.drawn.axes[-1].collections
    held,free = (c.get_paths()[0].get_extents() for c in bars)
    assert held.x0==free.x1==box.controls['L'].value and held.x1==box.controls['K'].value
    box.controls['L'].value = 1000; assert 'free all the way' in box.drawn.axes[-1].get_xlabel()

def test_other_explorers(tiny, photo):
    s = tiny.schedule
    box = kl_curves_explorer(s, photo, {'flipped': photo.flip(-1), 'same': photo*.9}); first = box.view.value
    box.controls['t'].value = 900; assert box.view.value!=first
    y = curve(box)[:,1]; assert (np.diff(y)<0).all() and y[0]==pytest.approx(s.kl(photo, photo.flip(-1), 1, per='image').item())
    box = prior_explorer(tiny); box.controls['t'].value = 500; assert (curve(box)[:,1]>0).all()
    photos = torch.cat([photo, photo.flip(-1)])
    box = restorer_explorer(photos, lambda x: x*.5, lambda x: x*.9, photos)
    assert all(b.get_height()>5 for b in box.drawn.axes[-1].patches)
    box.controls['i'].value = 1; assert len(box.drawn.axes)==5

def test_background_stops_and_tells(lab):
    def slow(job): time.sleep(.05); assert job<3, 'job 3 broke'
    work = Background(slow, [0, 1, 2, 3, 4]); work.join(10)
    assert work.count.value==3 and 'job 3 broke' in work.text.value
    work = Background(lambda job: time.sleep(.05), range(100)); work.stop(); work.join(10)
    assert work.count.value<100
    done = []
    work = Background(lambda job: time.sleep(.05), range(3)); work.then(lambda: done.append(1)); work.join(10); assert done==[1]
    work.then(lambda: done.append(2)); assert done==[1, 2]               # it was over already

def test_explorer_shows_what_is_wrong():
    def draw(n):
        if n==2: raise ValueError('two is wrong')
        return show(torch.zeros(1, 3, 4, 4)+n/5)
    box = explorer(draw, n=choice((1, 2, 3), 1)); good = box.view.value
    box.controls['n'].value = 2; assert box.note.value=='two is wrong' and box.view.value==good
    box.controls['n'].value = 3; assert box.note.value=='' and box.view.value!=good
    assert choice(range(5)).value==2 and choice(range(5), 0).min==0 and as_picture(box.drawn) is box.drawn

def test_curtain_needs_no_script(photo):
    html = curtain(photo, photo.flip(-1), 100).data
    assert html.count('<img')==2 and '<script' not in html and 'type="range"' in html
