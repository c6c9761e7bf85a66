"The explorers: what they draw, what they remember, and that they answer without being watched."
import subprocess, sys, threading, time
import numpy as np, pytest, torch
from gen2res import explore
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
    seen = box.view.value
    box.controls['seed'].value = 3; box.work.join(60); assert box.view.value!=seen and box.note.value==''
    box.controls['recipe'].value = 'ilvr'; box.work.join(60); assert 'ilvr' in box.drawn.axes[1].get_title()
    assert len(curve(box))==len(lab.Ks)                                   # its whole curve was filled, too

def test_what_is_missing_is_made_next_without_waiting(lab, monkeypatch):
    "A slider never makes anything itself: it asks for it, says so, and draws when it is there."
    gate,order = threading.Event(),[]
    do = lab._do
    monkeypatch.setattr(Lab, '_do', lambda self, **job: (gate.wait(30), order.append((job['K'], job['seed'])), do(**job))[2])
    box = K_explorer(lab, recipes=('plain',))
    assert box.drawn is None and 'being made' in box.note.value            # it is there before its first picture
    box.controls['seed'].value = 5; assert 'being made' in box.note.value
    gate.set(); box.work.join(60)
    assert order.index((lab.Ks[5], 5))<=1 and len(order)==2*len(lab.Ks)      # before all that was waiting, save what was under way
    assert 'being made' not in box.note.value and 'seed' not in box.work.text.value
    assert len(box.drawn.axes)==3+3

def test_stop_stops_at_the_next_step(lab, monkeypatch):
    begun = threading.Event(); going = lambda *a: (begun.set(), time.sleep(.05))
    slow = lambda self, **job: [(going(), self.callback()) for _ in range(400)] and {}
    monkeypatch.setattr(Lab, '_do', slow)
    box = K_explorer(lab, recipes=('plain',)); begun.wait(30)
    start = time.monotonic(); box.work.bar.children[2].click(); box.work.join(30)
    assert time.monotonic()-start<10 and box.work.made==0 and 'stopped' in box.work.text.value and not box.work.running
    assert not any(lab.has(lab.restored(K)) for K in lab.Ks) and not list(lab.folder.glob('.*'))

def test_an_error_holds_no_memory_and_a_stopped_job_stops(lab, monkeypatch):
    begun,made = threading.Event(),[]
    def slow(self, **job):
        if job['K']==lab.Ks[0]: raise ValueError('no')
        made.append(job['K']); begun.set()
        for _ in range(400): time.sleep(.02); self.callback()
        return {}
    monkeypatch.setattr(Lab, '_do', slow)
    box = K_explorer(lab, recipes=('plain',)); begun.wait(30); now = made[-1]
    box.work.bar.children[2].click(); job = lab.restored(lab.Ks[0], seed=9); box.work.first(job)      # asked for before the other has noticed
    start = time.monotonic()
    while not box.work.error(job) and time.monotonic()-start<6: time.sleep(.01)
    assert time.monotonic()-start<4 and box.work.error(job).__traceback__ is None            # a job takes eight seconds: it did not run to its end first
    box.work.stop(); box.work.join(30)

def test_what_cannot_be_made_is_told_and_not_tried_again(lab, monkeypatch):
    do,tries = lab._do,[]
    def broken(self, **job):
        if job['seed']==2: tries.append(job['K']); raise ValueError('two is wrong')
        return do(**job)
    monkeypatch.setattr(Lab, '_do', broken)
    box = K_explorer(lab, recipes=('plain',)); box.work.join(60)
    box.controls['seed'].value = 2; box.work.join(60)
    assert box.note.value=='two is wrong' and sorted(tries)==sorted(lab.Ks)
    box.controls['seed'].value = 1; box.work.join(60); assert box.note.value==''

def test_a_script_may_end_while_work_is_going_on(tmp_path):
    "No hang, no abort: the thread notices that the main one is gone."
    code = """import time
from gen2res.explore import Background
work = Background(lambda job: [(time.sleep(.02), work.check()) for _ in range(10_000)], range(3)).start()
time.sleep(.2)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode==0 and not done.stderr

def test_pictures_of_a_smaller_album_are_those_of_the_larger(lab, monkeypatch):
    four = lab(lab.drawn(1, n=4))['x']
    assert torch.equal(lab(lab.drawn(1, n=2))['x'], four[:2])
    drawn = []; real = explore.generative_album
    monkeypatch.setattr(explore, 'generative_album', lambda y, p, n, **kw: (drawn.append((n, kw['seeds'])), real(y, p, n, **kw))[1])
    eight = lab(lab.drawn(1, n=8))['x']
    assert drawn==[(4, 4)] and torch.equal(eight[:4], four)
    fresh = Lab(lab.photo, lab.prior, steps=2, album_steps=2)
    assert (fresh(fresh.drawn(1, n=8))['x']-eight).abs().max() < 1.01/127.5     # all at once: the same, but for rounding

def test_recipes_with_an_album_are_not_restored_here(lab):
    with pytest.raises(ValueError, match='constrained'): lab.restored(5, 'generative')

def test_a_cached_slider_answers_at_once(lab):
    box = K_explorer(lab, recipes=('plain',)); box.work.join(60)
    start = time.monotonic(); box.controls['K'].value = lab.Ks[-2]
    assert time.monotonic()-start < 5                                       # under one second on an idle machine; a busy one may be slower

def test_guidance_explorer(lab):
    box = guidance_explorer(lab, everys=(0, 1), scales=(0., 1.)); box.work.join(60)
    box.controls['every'].value = 1; box.controls['scale'].value = 1.; box.work.join(60)
    assert list(curve(box)[:,0])==[0, 1]
    assert torch.equal(lab(lab.drawn(1, 0.))['x'], lab(lab.drawn(0, 1.))['x'])   # scale 0 and never are the same walk

def test_album_explorer(lab):
    lab.album = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))*2-1
    box = album_explorer(lab, sizes=(1, 4, 16), everys=(1,)); box.work.join(120)
    assert box.work.count.value==2+1 and box.controls['n'].options==(1, 4)   # the person's album has only four; one walk without an album
    assert list(curve(box)[:,0])==[1, 4]
    box.controls['source'].value = 'personal'; box.work.join(60); assert 'personal' in box.drawn.axes[1].get_title()
    with pytest.raises(ValueError, match='K must be one of'): render_album(lab, 1, K=7, every=1)
    lab.album = None
    with pytest.raises(ValueError, match='no album'): render_album(lab, 1, source='personal')

def test_pseudo_explorer(lab):
    lab.restorer = load_restorer('swinir64', device='cpu')
    box = pseudo_explorer(lab, Ns=(2, 4)); box.work.join(60)
    box.controls['N'].value = 4; box.work.join(60)
    assert list(curve(box, 4+1)[:,0])==[2, 4]
    bars = box.drawn.axes[-1].collections
    held,free = (c.get_paths()[0].get_extents() for c in bars)
    assert held.x0==free.x1==box.controls['L'].value and held.x1==box.controls['K'].value
    box.controls['L'].value = 1000; box.work.join(60); assert 'free all the way' in box.drawn.axes[-1].get_xlabel()

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

def test_background_goes_on_and_tells():
    def slow(job):
        time.sleep(.02)
        if job==3: raise ValueError('job 3 broke')
    work = Background(slow, range(5)).start(); work.join(10)
    assert work.count.value==4 and 'job 3 broke' in work.text.value and str(work.error(3))=='job 3 broke' and work.error(2) is None
    done = []
    work = Background(lambda job: (time.sleep(.05), done.append(job)), range(100)).start(); work.stop(); work.join(10)
    assert len(done)<=1 and not work.queue
    work.first(7); work.join(10); assert done[-1]==7                        # asked again, it goes on
    told = []
    work = Background(lambda job: time.sleep(.02), range(4), each=lambda: told.append(work.made)); work.first(2)
    assert work.thread is None and list(work.queue)==[2, 0, 1, 3]
    work.start().join(10); assert told==[1, 4]                              # when the wanted one is there, and in the end

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

def test_a_sweep_of_tensors_in_any_order():
    rows = sweep(dict(K=[200, 50, 400]), lambda K: torch.tensor([float(K)]))
    assert [r['value'] for r in rows]==[200., 50., 400.]
    [line] = sweep_figure(rows, 'K', ['value']).axes[0].lines
    assert list(line.get_xdata())==[50, 200, 400]
