"Measurements: on a made-up data folder, the right signs, whole tables."
import copy, csv, re
import numpy as np, pytest, torch
from typer.testing import CliRunner
from gen2res import bench
from gen2res.pseudo import pseudo_numbers
from gen2res.constraints import Guide
from gen2res.sample import denoise
from gen2res.bench import LADDERS, QUERIES, descriptors, identity_test, load_faces, metric_order, metric_times, sane
from gen2res.explore import save_rows
from gen2res.cli import app
from gen2res.degrade import degrade
from gen2res.embedder import augmented
from gen2res.images import astronaut, resize, to_array

def test_who_is_who_is_part_of_what_was_measured(tmp_path):
    from gen2res.images import save_image
    for f in ('a/1/x.png', 'a/2/y.png'): save_image(astronaut(16), tmp_path/'albums'/f)
    h = lambda: (bench.data_hash.cache_clear(), bench.data_hash(tmp_path, ('albums',)))[1]
    before = h(); (tmp_path/'albums/a/2/y.png').rename(tmp_path/'albums/a/1/y.png'); assert h()!=before

@pytest.fixture
def data(tmp_path):
    "Five people made of one: turned and relit astronauts, as validation faces and as an album of two videos each."
    g = torch.Generator().manual_seed(0)
    x = augmented(astronaut(64).expand(5,-1,-1,-1), g, .0)
    u8 = lambda v: np.stack([to_array(im) for im in v])
    np.savez(tmp_path/'faces_val_64.npz', images=u8(x))
    np.savez(tmp_path/'albums_128.npz', images=u8(resize(x.repeat_interleave(2, 0), 128)), subject=np.repeat(list('abcde'), 2), video=np.array([f'v{i}' for i in range(10)]))
    return tmp_path

def test_load_faces(data): assert load_faces(data, 'faces_val_64.npz')['images'].shape==(5,3,64,64)

@pytest.mark.parametrize('values,better,want', [([1,2,3,4,5], 'down', 1), ([5,4,3,2,1], 'up', 1), ([1,2,3,4,5], 'up', -1), ([2,2,2,2,2], 'up', 0), ([1,3,2,4,5], 'down', .9)])
def test_sane(values, better, want): assert sane(np.array([values], float), better)==pytest.approx(want)

@pytest.mark.parametrize('damage', LADDERS)
def test_ladders_rise(damage):
    "Each rung is further from the truth than the one before, but for chance."
    x = astronaut(64); off = [(degrade(x, r, seeds=1, **kw)-x).pow(2).mean().item() for r,kw in LADDERS[damage]]
    assert len(off)==5 and sane(np.array([off]), 'down') >= .9, off

def test_metric_order(data):
    rows = list(metric_order(data, ['psnr', 'pd64', 'fd64'], n=4))
    assert len(rows)==3*5*len(LADDERS) and {r['n'] for r in rows}=={4}
    blur = [r for r in rows if (r['metric'], r['damage'])==('psnr', 'blur')]
    assert [float(r['value']) for r in blur]==sorted((float(r['value']) for r in blur), reverse=True) and float(blur[0]['rho'])==1
    assert all(float(r['low']) <= float(r['value'])*1.0001 and float(r['value']) <= float(r['high'])*1.0001 for r in rows if r['metric']!='fd64')

def test_identity(data):
    rows = list(identity_test(data, resamples=5))
    assert len(rows)==len(descriptors())*(4+len(QUERIES))
    assert all(0<=float(r['auc'])<=1 and 0<=float(r['eer'])<=1 for r in rows)
    first = rows[0]; assert first['test']=='other video' and float(first['auc'])==1                  # the same picture in both videos

def test_times(): assert len(list(metric_times(['psnr', 'fd64'], n=4)))==2

def test_table_is_whole_or_not_there(tmp_path):
    def rows():
        yield dict(a=1)
        raise RuntimeError
    with pytest.raises(RuntimeError): save_rows(rows(), tmp_path/'t.csv')
    assert not list(tmp_path.iterdir())
    assert list(csv.DictReader(open(save_rows([dict(a=1, b='x,y')], tmp_path/'t.csv'))))==[dict(a='1', b='x,y')]

def test_command(data, tmp_path):
    r = CliRunner().invoke(app, ['bench', 'metrics']); assert r.exit_code==2 and '--data' in r.stderr
    r = CliRunner().invoke(app, ['bench', 'identity', '--data', str(tmp_path/'none')]); assert r.exit_code==2 and len(r.stderr.strip().split('\n'))==1
    r = CliRunner().invoke(app, ['bench', 'nothing']); assert r.exit_code==2 and 'there are: loop, speed, plans, whole, targets, memory, times, metrics, identity' in r.stderr

def test_passes_are_counted(tiny, monkeypatch):
    from gen2res import bench
    from gen2res.bench import Count, cost, cost_figure
    from gen2res.tune import Experts
    x = torch.zeros(3, 3, 16, 16, requires_grad=True)
    with Count(tiny) as c:
        tiny(x, 5).x0.sum().backward()
        with torch.no_grad(): tiny(x[:2], 5)
    assert (c.forwards, c.backwards, c.equivalents)==(5, 3, 11)
    tiny(x.detach(), 5); assert c.forwards==5                            # not any more
    pair = Experts(copy.deepcopy(tiny), tiny, 40)
    with Count(pair) as c: pair(x.detach(), 5); pair(x.detach(), 500)
    assert c.forwards==6
    monkeypatch.setitem(bench.PLANS, 'fast', (dict(n=8, every=2, steps=6, K=300), dict(iters=4, batch=2), 3))
    rows = list(cost(tiny, 'fast', .5)); by = {r['stage']: r for r in rows}
    assert [(by[s]['forwards'], by[s]['backwards']) for s in ('album','tuning','sampling')]==[(48, 24), (8, 8), (3, 0)]
    assert by['album']['done']==by['tuning']['done']==.5 and all(r['seconds']>0 and r['over_bare']>0 for r in rows)
    widths = [b.get_width() for b in cost_figure(rows).axes[0].patches]; assert widths==[96, 24, 3]

# -- the papers' plans at their own sizes ------------------------------------------------------------------------

@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('kind', ['learned', 'fixed'])
def test_the_plainly_written_step_is_ours(kind, guided, tiny, faces64):
    prior = tiny if kind=='learned' else faces64
    x,y,e = (torch.randn(1,3,prior.side,prior.side, generator=torch.Generator().manual_seed(i)) for i in range(3))
    ours = []
    denoise(prior, x, [300, 299], [Guide(y, .3)] if guided else [], rng=lambda x: e, callback=lambda st: ours.append(st.x))
    assert torch.allclose(bench.plain_step(prior, x, 300, 299, e, y if guided else None), ours[1], atol=1e-5)

def test_the_plainly_written_training_learns(tiny):
    before = [p.clone() for p in tiny.model.parameters()]; once = bench.plain_training(tiny, torch.zeros(2,3,16,16))
    once(); assert all(torch.equal(a, b) for a,b in zip(before, tiny.model.parameters()))            # a copy is trained
    net = next(c.cell_contents for c in once.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    assert any(not torch.equal(a, b) for a,b in zip(before, net.parameters()))

def test_plans_are_reckoned_from_rates(faces64):
    r = dict(step=(2., 1.), alone=(3., 1.), guided=(10., 5.), training=(100., 10.))
    plan = (dict(n=2, every=5, steps=50), dict(iters=7), 20)
    assert bench.plan_seconds(r, 0, faces64, *plan)==dict(album=2*(40*2+10*10), tuning=7*100, sampling=20*3) and bench.plan_seconds(r, 1, faces64, *plan)==dict(album=2*(40+50), tuning=70, sampling=20)

def test_plans(tiny):
    lines = list(bench.plans(tiny, at_once=2, rounds=1))
    assert len(lines)==7 and all('times as fast' in l for l in lines[:4]) and lines[4].startswith('the same pictures to') and lines[6].startswith('a further photo')
    assert float(lines[4].split()[-2]) > 60                                                           # in float32 the same, guided steps among them

def test_a_whole_restoration_is_done_and_further_photos(tiny, monkeypatch):
    monkeypatch.setitem(bench.PLANS, 'paper', (dict(n=2, every=2, steps=4, K=300), dict(iters=2, batch=2), 3)); steps,restore = [],bench.restore
    monkeypatch.setattr(bench, 'restore', lambda y, prior, **kw: steps.append(kw['steps']) or restore(y, prior, **kw))
    all_,further = bench.whole(tiny, photos=2)
    assert re.fullmatch(r'paper: album [0-9.]+ s, tuning [0-9.]+ s, sampling [0-9.]+ s; all [0-9.]+ s', all_) and re.fullmatch(r'a further photo: [0-9.]+ s', further)
    assert steps==[3]*4                                                          # the photo, one that records, and two

def test_what_is_timed_is_a_whole_step(tiny):
    from gen2res.constraints import LowFreq
    seen = []; x = torch.zeros(2,3,16,16)
    held = LowFreq(x, 2); held.on_sample = lambda st: seen.append((st.t, st.s, not torch.equal(st.x_next, st.mean)))
    bench.some_steps(tiny, x, [held], 300)
    assert seen==[(300, 299, True)]                                                                   # one step, with its noise
    seen.clear(); bench.some_steps(tiny, x, [held], 300, 3); assert seen==[(300-i, 299-i, True) for i in range(3)]

def test_pseudo_targets_are_planned(tiny):
    [line] = bench.targets(tiny, at_once=2, rounds=1, photos=10)
    plan = pseudo_numbers(tiny); assert line.startswith(f'10 pseudo targets of 16 pixels, {plan["steps"]} steps each: ')

def test_half_as_many_where_memory_is_short():
    tried = []
    def do(n):
        tried.append(n)
        if n>2: raise RuntimeError("can't allocate memory")
        return n
    assert bench._at_most(9, do)==2 and tried==[9, 4, 2]
    with pytest.raises(RuntimeError, match='other'): bench._at_most(4, lambda n: (_ for _ in ()).throw(RuntimeError('other')))

def test_memory_is_of_an_iteration_that_has_the_optimizers_state(tiny, monkeypatch):
    steps = []; monkeypatch.setattr(bench.Tuner, 'step', lambda self, step=bench.Tuner.step: (steps.append(len(self.opt.state)), step(self))[1])
    lines = list(bench.memory(tiny, batch=2))
    assert len(lines) in (6, 12) and steps[::2]==[0]*len(lines) and all(steps[1::2]) and sum('adapters' in l for l in lines)==len(lines)//2 and 'kept' in lines[0]

def test_shapes_with_made_up_weights(monkeypatch):
    monkeypatch.setitem(bench.FAMILIES, 'small', dict(image_size=16, model_channels=32, num_res_blocks=1, channel_mult=[1,2], attention_pixels=[8], num_heads=1))
    a,b = bench.made_up('small'),bench.made_up('small')
    assert a.fingerprint()==b.fingerprint() and a.side==16 and a.variance=='learned' and a(torch.randn(1,3,16,16), 500).eps.std()>.01
    with pytest.raises(ValueError, match='no shape .large.; there are: gen2res-256'): bench.made_up('large')

def test_tables_say_which_library_made_them(tmp_path, monkeypatch):
    import gen2res, gen2res.cli, re
    from gen2res.bench import commit
    monkeypatch.setattr(gen2res.cli, '_rows', lambda *a, **kw: lambda: iter([dict(K=100, value=1.5)]))
    r = CliRunner().invoke(app, ['bench', 'claim-K', '--data', 'd', '-o', str(tmp_path/'t.csv')]); assert r.exit_code==0, r.output
    [row] = csv.DictReader(open(tmp_path/'t.csv'))
    assert row['value']=='1.5' and row['commit']==commit() and re.fullmatch(r'[0-9a-f]{7,40}\+?|[\d.]+', commit())
    commit.cache_clear(); monkeypatch.setattr(gen2res.bench, '_git', lambda *a: ''); assert commit()==gen2res.__version__
    commit.cache_clear()

def test_priors_of_two_sides_on_the_same_photos(tmp_path):
    np.savez(tmp_path/'faces_val_128.npz', images=np.random.default_rng(0).integers(0, 255, (3,128,128,3), dtype=np.uint8))
    rows = list(bench.sides(tmp_path, scales=(2.,), n=2, Ks=(100,), steps=2))
    assert {(r['method'], r['minus']) for r in rows}=={('input', ''), ('input', 'faces64'), ('faces64', ''), ('faces128', ''), ('faces128', 'faces64')} and {r['n'] for r in rows}=={2}
