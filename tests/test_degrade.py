"Degradations: what the paper states, what a seed promises, what a folder may hold."
import io, json, math
import numpy as np, pytest, torch
from PIL import Image
from gen2res.degrade import (CLASSIC, ISO, RECIPES, Recipe, bayer, camera, classic, colour_matrix, convolve, degrade, degrade_files, degrade_one, demosaic, draw_camera, draw_classic,
                             file_seed, from_linear, jpeg, kernel, path, recipe_of, sensor_noise, small, to_linear)
from gen2res.images import ImageError, astronaut, load_image, save_image, to_array, to_pil

NAMES = [f'{k}:{p}' for k,r in RECIPES.items() for p in r.presets if isinstance(r.presets, tuple)] + [*RECIPES, 'jpeg:10', 'small:25']
gen = lambda s=0: torch.Generator().manual_seed(s)

@pytest.mark.parametrize('name', NAMES)
def test_every_recipe(name):
    x = astronaut(80).expand(3,-1,-1,-1)
    y = degrade(x, name, seeds=[1,2,1])
    assert y.shape==x.shape and y.abs().max()<=1 and y.isfinite().all()
    assert torch.equal(y[0], y[2]) and not torch.equal(y[0], y[1]) or name in ('jpeg:10', 'small:25')
    assert torch.equal(degrade(x[:1], name, seeds=[2])[0], y[1])                         # alone or in company
    assert (y-x).abs().mean() > 1e-3

@pytest.mark.parametrize('shape', [(33,70), (8,8), (200,9)])
@pytest.mark.parametrize('name', list(RECIPES))
def test_any_shape(name, shape): assert degrade(torch.rand(1,3,*shape)*2-1, name).shape==(1,3,*shape)

@pytest.mark.parametrize('preset', CLASSIC)
@pytest.mark.parametrize('side', [64, 512])
def test_classic_ranges(preset, side):
    "The paper's ranges, filled from end to end, lengths scaled with the side."
    draws = [draw_classic(gen(s), side, preset) for s in range(400)]
    for (lo,hi),k,scale in zip(CLASSIC[preset], ('sigma', 'r', 'delta', 'q'), (side/512, side/512, 1, 1)):
        v = [d[k] for d in draws]
        assert max(v)<=hi*scale+1e-9 and min(v)>=min(lo*scale, lo, 1)-1e-9
        assert max(v)>(lo+.97*(hi-lo))*scale and min(v)<max((lo+.03*(hi-lo))*scale, min(lo, 1)+.01)

def test_nothing_drawn_is_nothing_done():
    x = astronaut(64)
    assert (classic(x, gen(), sigma=0, r=1, delta=0, q=100)-x).abs().mean() < 2/127.5      # but for JPEG at its best, which still halves the colours

def test_jpeg_is_pillows():
    x,f = astronaut(64),io.BytesIO()
    to_pil(x).save(f, 'JPEG', quality=30)
    assert (to_array(jpeg(x, 30))==np.asarray(Image.open(f))).all()

def test_curves_and_colours_invert():
    u = torch.linspace(0, 1, 1001)
    assert (from_linear(to_linear(u))-u).abs().max() < 1e-4 and (to_linear(u).diff()>=0).all()
    m = colour_matrix([1., 2., 3., 4.])
    assert torch.allclose(m.sum(1), torch.ones(3), atol=1e-6) and abs(torch.linalg.det(m)) > .1

@pytest.mark.parametrize('seed', range(5))
def test_camera_round_trip_without_noise(seed):
    x = astronaut(128)
    y = camera(x, gen(), **{**draw_camera(gen(seed), 128), 'scale': 1., 'iso': 0})
    assert -10*math.log10(((y-x)/2).pow(2).mean()) > 33                                    # dB

def test_grey_survives_the_mosaic():
    raw = torch.full((1,1,16,20), .3)
    assert torch.allclose(demosaic(raw, bayer(raw)), torch.full((1,3,16,20), .3), atol=1e-6)
    assert bayer(raw).sum(1).eq(1).all() and bayer(raw)[:,1].mean()==.5                     # half of the cells are green

def test_noise_rises_with_iso_and_light():
    assert [sensor_noise(v) for v in ISO.values()]==sorted(sensor_noise(v) for v in ISO.values())
    x,d = torch.zeros(1,3,64,64),draw_camera(gen(), 64)
    loud = [camera(x, gen(), **{**d, 'scale': 1., 'iso': v}).std() for v in (0, *ISO.values())]
    assert loud==sorted(loud) and loud[0] < 1e-3
    from gen2res.degrade import expose
    for light in (.1, .5):                                                                   # the stated variance
        n = expose(torch.full((1,1,200,200), light), 1600, gen())-light
        shot,read = sensor_noise(1600)
        assert abs(n.var()/(shot*light+read)-1) < .02

@pytest.mark.parametrize('straight', [True, False])
def test_kernel_sums_to_one_and_is_as_long_as_said(straight):
    p = path(gen(3), 20., straight); k = kernel(p)
    assert abs(k.sum()-1) < 1e-5 and k.shape[-1]%2==1
    steps = p.diff(dim=0).norm(dim=1).sum()
    assert abs(steps-20) < 1 and (not straight or (p[-1]-p[0]).norm() > 19)

@pytest.mark.parametrize('straight', [True, False])
def test_long_paths_leave_no_gaps(straight):
    p = path(gen(3), 400., straight); k = kernel(p)
    assert p.diff(dim=0).norm(dim=1).max() < .6 and abs(p.diff(dim=0).norm(dim=1).sum()-400) < 8
    along = k.amax((2 if k.amax(2).count_nonzero()>k.amax(3).count_nonzero() else 3))[0,0]; there = along[along>.5*along.median()]
    assert not straight or there.min() > .8*there.median()                               # a line, and not a row of spots

def test_large_kernels_are_applied_as_small_ones_are(monkeypatch):
    x,k = torch.randn(2, 3, 30, 50),kernel(path(gen(3), 90., True)); quick = convolve(x, k); assert k.shape[-1]>=64
    monkeypatch.setattr('gen2res.degrade.LARGE', 1000); assert (quick-convolve(x, k)).abs().max() < 1e-5

def test_codeformers_draws_never_enlarge(): assert all(RECIPES['classic'].draw(gen(s), 64, 'codeformer')['r']>=1 for s in range(40))

def test_one_seed_a_picture():
    with pytest.raises(ValueError, match='3 images but 2 seeds'): degrade(astronaut(32).expand(3, -1, -1, -1), 'jpeg', seeds=[1, 2])

def test_small_is_that_small():
    assert torch.equal(small(astronaut(64), gen(), 25), degrade(astronaut(64), 'small:25'))
    assert all(25<=RECIPES['small'].draw(gen(s), 128)['pixels']<=64 for s in range(50))

@pytest.mark.parametrize('name', ['camera:severe', 'motion', 'small:25', 'old', 'lowlight'])
def test_gradients_pass(name):
    x = astronaut(32).requires_grad_()
    degrade(x, name).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0

@pytest.mark.parametrize('name', ['', 'nope', 'camera:worst', 'jpeg:-3', 'jpeg:x', 'scratches:2'])
def test_unknown_recipes(name):
    with pytest.raises(ValueError, match='there are: classic'): recipe_of(name)

def test_unknown_number():
    with pytest.raises(ValueError, match='has no sharpness; it has: sigma, r'): degrade(astronaut(32), 'classic', sharpness=3)

def test_folder(tmp_path):
    for n in 'ab': save_image(astronaut(40), tmp_path/f'in/{n}.png')
    (tmp_path/'in/bad.png').write_bytes(b'')
    said = []
    assert degrade_files([tmp_path/'in'], 'camera:mild', tmp_path/'out', seed=3, report=said.append)==[tmp_path/'in/bad.png']
    files = json.loads((tmp_path/'out/manifest.json').read_text())['files']
    assert set(files)=={'a','b'} and files['a']['seed']==file_seed(3, 'a')!=files['b']['seed'] and files['a']['iso']==800
    assert any('bad.png: is empty' in str(s) for s in said)
    numbers = {k:v for k,v in files['b'].items() if k not in ('source', 'seed')}
    y,_ = degrade_one(load_image(tmp_path/'in/b.png'), 'camera:mild', gen(files['b']['seed']), **numbers)     # the manifest is enough
    assert (to_array(y)==to_array(load_image(tmp_path/'out/b.png'))).all()
    degrade_files([tmp_path/'in/b.png'], 'camera:mild', tmp_path/'alone', seed=3, report=said.append)
    assert (tmp_path/'alone/b.png').read_bytes()==(tmp_path/'out/b.png').read_bytes()
    with pytest.raises(ImageError, match='manifest.json: exists already'): degrade_files([tmp_path/'in'], 'jpeg', tmp_path/'out')
    (tmp_path/'nothing').mkdir()
    with pytest.raises(ImageError, match='no pictures here'): degrade_files([tmp_path/'nothing'], 'jpeg', tmp_path/'x')

def test_a_killed_call_goes_on(tmp_path):
    for n in 'ab': save_image(astronaut(40), tmp_path/f'in/{n}.png')
    made,note,go = tmp_path/'out/a.png',tmp_path/'out/manifest.json',lambda **kw: degrade_files([tmp_path/'in'], 'camera', tmp_path/'out', report=said.append, **kw)
    said = []; assert go()==[] and len(said)==2
    first,written = note.read_bytes(),made.stat().st_mtime_ns; note.unlink(); (tmp_path/'out/b.png').unlink(); said.clear()
    assert go()==[] and note.read_bytes()==first and made.stat().st_mtime_ns==written and said==[tmp_path/'out/b.png']
    (tmp_path/'in/a.png').unlink(); assert go(force=True)==[] and set(json.loads(note.read_text())['files'])=={'a','b'}    # a.png is there still
    (tmp_path/'in/b.png').rename(tmp_path/'in/a.png'); save_image(astronaut(40), tmp_path/'in/b.png'); written = made.stat().st_mtime_ns
    for other in ('[]', '{"files": 3}', '{'): note.write_text(other); assert go(force=True)==[] and 'b' in json.loads(note.read_text())['files']
    written = made.stat().st_mtime_ns; note.unlink(); assert len(go(seed=1))==2 and made.stat().st_mtime_ns==written            # asked for something else, it is not replaced

@pytest.mark.parametrize('v', [-800, float('nan'), float('inf')])
def test_numbers_lie_from_0_on(v):
    with pytest.raises(ValueError, match='iso = .*; numbers must lie from 0 on'): degrade(astronaut(32), 'camera', iso=v)

@pytest.mark.parametrize('recipe,fixed', [('camera', dict(scale=0)), ('scratches', dict(count=2.5)), ('classic', dict(r=0)), ('small', dict(pixels=0))])
def test_numbers_that_cannot_be(recipe, fixed):
    [k] = fixed
    with pytest.raises(ValueError, match=f"recipe '{recipe}' cannot work with {k} = "): degrade(astronaut(32), recipe, **fixed)

@pytest.mark.parametrize('recipe,line', [
    (Recipe(lambda g, side: dict(k=torch.ones(1)), lambda x, g, k: x, ()), 'must be plain numbers'),
    (Recipe(lambda g, side: {}, lambda x, g: x[...,::2,::2], ()), 'must keep the shape')])
def test_a_recipe_of_ones_own_is_checked(recipe, line, monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, 'mine', recipe); save_image(astronaut(32), tmp_path/'in'/'a.png')
    with pytest.raises(ValueError, match=f"recipe 'mine'.*{line}"): degrade(astronaut(32), 'mine')
    try: failed = degrade_files([tmp_path/'in'], 'mine', tmp_path/'out', report=lambda *a: None)
    except ValueError: failed = True
    assert failed and not list((tmp_path/'out').glob('*.png'))

def test_originals_are_not_replaced_by_their_damaged_copies(tmp_path):
    save_image(astronaut(40), tmp_path/'a.png'); save_image(astronaut(48), tmp_path/'out/a.png'); said = []
    before = [(tmp_path/p).read_bytes() for p in ('a.png', 'out/a.png')]
    for out,why in (('.', 'a.png: would be replaced by its damaged copy'), ('out', 'out/a.png: is there already, and no degraded picture')):
        assert degrade_files([tmp_path/'a.png'], 'jpeg', tmp_path/out, force=True, report=said.append)==[tmp_path/'a.png'] and why in str(said[-1])
    assert before==[(tmp_path/p).read_bytes() for p in ('a.png', 'out/a.png')]
    degrade_files([tmp_path/'a.png'], 'jpeg', tmp_path/'new', report=said.append)
    assert degrade_files([tmp_path/'a.png'], 'jpeg', tmp_path/'new', seed=1, force=True, report=said.append)==[]   # one's own may be
