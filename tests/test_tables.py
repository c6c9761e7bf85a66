"The second paper's tables, at sizes of seconds."
import numpy as np, pytest, torch
from gen2res import tables
from gen2res.explore import among, read_rows, save_rows
from gen2res.restorers import load_restorer, small_swinir
from gen2res.images import ImageError, save_image
from gen2res.metrics import at_hand
from gen2res.tables import NAMES, PERSON, SET, SETS, TABLES, Tables, choices, photos

@pytest.fixture
def data(tmp_path):
    g = np.random.default_rng(0)
    for split,n in (('train', 6), ('val', 3)): np.savez(tmp_path/f'faces_{split}_64.npz', images=g.integers(0, 255, (n,64,64,3), dtype=np.uint8))
    for i in range(3): save_image(torch.rand(1,3,70,70, generator=torch.Generator().manual_seed(i))*2-1, tmp_path/'degraded'/'aligned'/f'{i}.png')
    return tmp_path

@pytest.fixture
def bench(data, tiny64, tmp_path, monkeypatch):
    for p in ('fast','paper'): monkeypatch.setitem(tables.RESTORER_PRESETS, p, dict(iters=1, batch=2, lr=1e-4))
    monkeypatch.setattr(tables, 'N_PHOTOS', 4); monkeypatch.setattr(tables, 'pseudo_numbers', lambda p, K=8, L=2, N=2, steps=2: dict(K=min(K, 8), L=L, N=N, steps=2))
    real = tables.pseudo_targets
    monkeypatch.setattr(tables, 'pseudo_targets', lambda y, prior, **kw: real(y, prior, **(dict(K=8, L=2, steps=2) | kw)))
    torch.manual_seed(0)
    return Tables(data, tiny64, tmp_path/'w', small_swinir(64, width=12, depths=(2,), heads=2))

def test_photos_are_damaged_alike_and_differ_by_split(data):
    y,truth = photos(data, '8 severe', 'val'); again,_ = photos(data, '8 severe', 'val', slice(2))
    assert torch.equal(photos(data, '8 severe', 'train', slice(2, 5))[0], photos(data, '8 severe', 'train')[0][2:5])
    assert y.shape==truth.shape==(3,3,64,64) and torch.equal(y[:2], again) and not torch.equal(photos(data, '4 severe', 'val')[0], y)

ONCE = [n for n in {f: n for n,f in reversed(list(TABLES.items()))}.values() if n not in ('5','8','9','16','20','22','27','lpips')] # those with several numbers by their first; 9, 16, 20 and 22 are 4, 15, 19 and 21 on other photos

SMALL = '2 moderate',

@pytest.mark.parametrize('name', ONCE)
def test_every_table(name, bench, tmp_path):
    kw = {'3': dict(on='2 moderate'), '4': dict(kinds=SMALL, ns=(2,None)), 'iters': dict(kinds=SMALL, longer=(2,)), 'steps': dict(kinds=SMALL, steps=(1,))}.get(name, dict(kinds=SMALL))
    bench.methods = {'6': ['L1'], '12': ['free from 180'], '21': ['N 32'], 'seeds': ['seed 1']}.get(name)
    rows = read_rows(save_rows(TABLES[name](bench, **kw), tmp_path/'t.csv')); alone = among(rows, minus='')
    assert {r['metric'] for r in alone}=={'3': {'ids64', 'pd64', 'detail', 'fd64 good'}, 'held': {'held'}, '25': {*PERSON}, 'preset': {*NAMES, *SET, *at_hand(*PERSON)}}.get(name, {*NAMES, *SET}) and len({r['method'] for r in alone})>=2 and all(r['low']<=r['value']<=r['high'] for r in alone) and all(r['n']==3 for r in rows)
    assert {r['metric'] for r in rows if r['minus']}=={r['metric'] for r in alone} and all('photos' in r and 'iters' in r for r in rows)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'w').rglob('*')}
    list(TABLES[name](bench, **kw)); assert made=={p: p.stat().st_mtime_ns for p in (tmp_path/'w').rglob('*')}
    bench.work = tmp_path/'elsewhere'; assert read_rows(save_rows(TABLES[name](bench, **kw), tmp_path/'again.csv'))==rows and not bench.work.exists()   # from the ledger

def test_tuned_by_lpips_itself(bench, monkeypatch):
    monkeypatch.setattr(tables, 'table', lambda b, k, jobs, *bases, **kw: [(jobs, bases)]); monkeypatch.setattr(tables, 'metric', lambda m: asked.append(m)); asked = []
    [(jobs,bases)] = TABLES['lpips'](bench, kinds=SMALL); losses = lambda m: jobs[m]['by']['losses']
    assert asked==['lpips'] and {*bases}<={*jobs} and jobs['pd64 0.1']==bench.tuned('2 moderate') and jobs['L1 + GAN']==bench.tuned('2 moderate', losses=tables.LOSSES['L1 + GAN'])
    assert [losses(f'lpips {w}') for w in (1., .1, .01)]==[dict(perceptual=w, gan=.1, by='lpips') for w in (1., .1, .01)] and losses('L1 + lpips')==dict(perceptual=.1, gan=0., by='lpips')

def test_the_table_of_times(bench):
    rows = {r['method']: r for r in TABLES['27'](bench, repeats=1)}
    assert float(rows['restorer, tuned or not']['over_restorer'])==1 and all(0<float(r['low'])<=float(r['seconds'])<=float(r['high']) and r['n']==1 and r['machine'] for r in rows.values())
    both = float(rows['targets']['millions']); assert abs(both-float(rows['one step of the prior']['millions'])-float(rows['restorer, tuned or not']['millions']))<.011

def test_every_table_of_the_paper_has_a_function():
    assert {*map(str, range(1, 28))} <= {*TABLES}

def test_tables_about_codeformer(bench, data, codeformer, monkeypatch):
    with pytest.raises(ValueError, match='is about CodeFormer'): list(TABLES['5'](bench))
    np.savez(data/'faces_val_64.npz', images=np.random.default_rng(1).integers(0, 255, (2,64,64,3), dtype=np.uint8)); tables.data_hash.cache_clear()
    bench,losses = Tables(bench.data, bench.prior, bench.work, load_restorer(codeformer, device='cpu'), n=1),[]
    def noted(restorer, y, x, real, side, run, **kw): losses.append(kw['losses']); run.mkdir(parents=True); return restorer      # the training itself: test_codeformer_is_tuned_in_part
    monkeypatch.setattr(tables, 'tune_restorer', noted); monkeypatch.setattr(tables, 'load_restorer', lambda *args: load_restorer('identity'))   # quicker than what comes from a file
    for name,bench.methods in (('5', ['encoder']), ('8', ['token 1.0'])):
        alone = [r for r in TABLES[name](bench, kinds=SETS[1:2]) if r['minus']=='']
        assert len({r['method'] for r in alone})==2 and all(r['n']==2 for r in alone)
    assert losses==[dict(tuned=['encoder']), {}, dict(token=1.)]
    with pytest.raises(ValueError, match='any restorer but CodeFormer'): list(TABLES['6'](bench))

def test_more_of_codeformer_is_held_at_4x(bench, faces64, codeformer):
    bench.prior,bench.restorer = faces64,load_restorer(codeformer, device='cpu'); faces64.side = 512
    try: assert [bench.N(k) for k in SETS]==[8, 8, 16, 16] and [*choices(faces64, bench.N(SETS[1]))][:4]==['ours', 'N 4', 'N 16', 'L 0']
    finally: faces64.side = 64

def test_jobs_know_all_that_they_depend_on(bench, monkeypatch):
    a = bench.tuned('4 moderate'); b = Tables(bench.data, bench.prior, bench.work, bench.restorer, iters=2).tuned('4 moderate')
    assert a!=b and a['prior']==bench.prior.fingerprint() and len(a['restorer'])==12

def test_targets_of_the_photo_itself(bench):
    from gen2res.pseudo import pseudo_targets
    [x] = [r['x'] for r in bench.done([bench.targets('2 moderate', by='none')])]
    want = pseudo_targets(photos(bench.data, '2 moderate', 'val')[0], bench.prior, K=8, L=2, steps=2, seeds=0)
    assert (x-want).abs().max() < .02

def test_choices_differ_from_ours_in_what_they_say(faces64):
    c = choices(faces64, 2)
    assert c=={'ours': {}, 'N 32': dict(N=4), 'L 0': dict(L=0), 'L 180': dict(L=21), 'K 900': dict(K=632, steps=80), 'free from 180': dict(K=21, L=1000, steps=16), 'free from 360': dict(K=61, L=1000, steps=32), 'free from 600': dict(K=211, L=1000, steps=53)}
    assert [m for m in choices(faces64, 2, (900,)) if 'free' in m]==['free from 900']

def test_people_of_the_two_halves_are_apart_and_sources_mixed(tmp_path):
    images = np.repeat(np.arange(40, dtype=np.uint8), 2)[:,None,None,None]*np.ones((1,64,64,3), dtype=np.uint8)      # two pictures of each of 40, by source in order
    np.savez(tmp_path/'faces_train_64.npz', images=images, subject=np.repeat([f's{i:02}' for i in range(40)], 2))
    a,b = [((tables._half(tmp_path, w)[:,0,0,0]+1)*127.5).round().tolist() for w in (0, 1)]
    assert len(a)+len(b)==80 and not set(a)&set(b) and min(a[:20])<13 and max(a[:20])>26

def test_the_interval_of_fd64_holds_its_value():
    from gen2res.metrics import metric, statistics
    from gen2res.tables import jackknife, set_score
    x = torch.rand(30,3,64,64)*2-1; soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2); truth = statistics(metric('fd64').features(x))
    a,b,c = (set_score(t, truth) for t in (x, soft, .98*soft)); same,other = jackknife(a),jackknife(b)
    assert same[0]<1e-3 and other[1]<=other[0]<=other[2] and other[1]>same[2]
    value,low,high = jackknife(np.array(c)-np.array(b)); assert high-low < other[2]-other[1]           # paired, the pictures' own spread cancels
    assert jackknife(set_score(x[:3], truth))[2]==float('inf')                 # one group: nothing is known about the spread

def test_other_photos_are_other_jobs(bench, data, tmp_path):
    np.savez(data/'faces_val_64.npz', images=np.zeros((3,64,64,3), dtype=np.uint8)); tables.data_hash.cache_clear()
    assert Tables(data, bench.prior, tmp_path/'w', bench.restorer).job('restored', kind='4 moderate')!=bench.job('restored', kind='4 moderate')

def test_folders_of_pictures_at_any_side(tmp_path, tiny):
    for split,n in (('train', 4), ('val', 2)):
        for i in range(n): save_image(torch.rand(1,3,40,30)*2-1, tmp_path/split/f'{i}.png')
    tiny.side = 32; torch.manual_seed(0); bench = Tables(tmp_path, tiny, tmp_path/'w', small_swinir(32, fold=2, width=12, depths=(2,), heads=2), n=2, iters=1)
    y,truth = bench.photos('4 moderate'); x = bench.done([bench.tuned('4 moderate', targets='truth')])[0]['x']
    assert y.shape==truth.shape==x.shape==(2,3,32,32) and not any((bench.work/'unfinished').iterdir())
    a = bench.ids['data']; (tmp_path/'val'/'0.png').unlink(); tables.data_hash.cache_clear()
    assert Tables(tmp_path, tiny, bench.work, bench.restorer).ids['data']!=a
    with pytest.raises(ImageError, match='neither faces_val_32.npz nor a folder val'): Tables(tmp_path/'train', tiny, bench.work, bench.restorer)

def test_only_the_methods_asked_for(bench):
    bench.methods = ['dr2']
    rows = list(TABLES['2'](bench, kinds=SETS[:1]))
    assert {r['method'] for r in rows}=={'dr2', 'targets'} and len(list(bench.work.glob('*.npz')))==2         # with what they are compared with
    bench.methods = ['dr3']
    with pytest.raises(ValueError, match="no method 'dr3' here; there are: pre-trained, targets, difface"): list(TABLES['2'](bench, kinds=SETS[:1]))

def test_a_smaller_set_is_the_beginning_of_a_larger_one(bench, monkeypatch):
    monkeypatch.setattr(tables, 'BLOCK', 2); monkeypatch.setattr('gen2res.tables.tune_restorer', lambda restorer, y, x, real, side, run, **kw: seen.append((y, x)) or run.mkdir(parents=True) or restorer); seen = []
    names = lambda n: [tables.job_name(j) for j in bench.blocks(**{k: v for k,v in bench.training('4 moderate', n=n).items() if k in ('kind','targets','n')})]
    assert names(2)==names(3)[:1] and len(names(3))==2 and len(names(None))==2
    bench.done([bench.tuned('4 moderate', n=2), bench.tuned('4 moderate', n=3)])
    (y2,x2),(y3,x3) = seen; assert len(x2)==2 and len(x3)==3 and torch.equal(x3[:2], x2) and torch.equal(y3[:2], y2)
    whole = bench.done([bench.targets('4 moderate', split='train')])[0]['x']; assert (whole[:3]-tables.torch.stack([t.float()/127.5-1 for t in x3])).abs().max() < .02

def test_rivals_hold_as_much_as_ours(bench, monkeypatch):
    held = []; monkeypatch.setattr(tables, 'recipe_arguments', lambda name, y, prior, K, N, real=tables.recipe_arguments: held.append((name, N)) or real(name, y, prior, K, N))
    bench.done([bench.targets(k, 'ilvr') for k in ('2 moderate', '4 moderate')])
    assert {*held}=={('ilvr', bench.N('2 moderate')), ('ilvr', tables.HELD)} and bench.N('2 moderate')<tables.HELD

def test_a_tuned_restorer_is_kept_and_tuned_once(bench, monkeypatch):
    seen,real = [],tables.tune_restorer
    monkeypatch.setattr(tables, 'tune_restorer', lambda *a, **kw: seen.append(1) or real(*a, **kw))
    bench.done([bench.tuned('4 moderate'), bench.restored('real', by=bench.training('4 moderate')), bench.targets('4 severe', 'difface', by=bench.training('4 moderate'))])
    assert seen==[1] and sorted(p.suffix for p in (bench.work/'restorers').iterdir())==['.jsonl','.safetensors']

def test_orders_are_compared_with_the_papers():
    from gen2res.tables import orderings, printed
    paper = [dict(table=t, kind=k, restorer=r, method=m, metric='fid', value=v) for t,k,r,m,v in (('1','4 moderate','CodeFormer','tuned','9'), ('1','4 moderate','SwinIR','pre-trained','74.1'), ('14','4 moderate','SwinIR','tuned','41'),
                                                                                             ('2','8 moderate+8 severe','','difface','80'), ('2','8 moderate+8 severe','','targets','50'))]
    assert printed(paper, ('1','14'), '4 moderate', 'tuned', 'fd64')==41 and printed(paper, ('1','14'), '4 moderate', 'tuned', 'fd64', 'CodeFormer')==9 and printed(paper, ('2',), '8 severe', 'difface', 'fd64')==80 and printed(paper, ('2',), '4 severe', 'difface', 'fd64') is None
    row = lambda value, low, high, **kw: dict(dict(kind='4 moderate', method='tuned', minus='pre-trained', metric='fd64', value=value, low=low, high=high), **kw)
    rows = [row(-1., -2., -.5), row(1., .5, 2.), row(-1., -2., .5), row(1., .5, 2., kind='8 severe', method='difface', minus='targets'), row(1., 1., 1., minus=''), row(1., 1., 1., metric='ids64'), row(1., 1., 1., kind='4 severe')]
    assert [o['verdict'] for o in orderings([dict(r, kind='2 moderate') for r in rows[:3]], paper, '1', '14')]==['holds','reversed','undecided']   # as hard as the paper's
    assert [o['verdict'] for o in orderings(rows[:3], paper, '1', '14')]==['holds','reversed','undecided'] and [o['verdict'] for o in orderings(rows[3:], paper, '2')]==['holds']
    real = [dict(table='3', kind='wider-test-200', restorer='', method=m, metric='fid-ffhq', value=v) for m,v in (('tuned', '84.7'), ('pre-trained', '87.6'))]
    assert [o['verdict'] for o in orderings([row(-1., -2., -.5, kind='real', metric='fd64 good')], real, '3')]==['holds']

def test_nothing_is_decided_by_an_interval_of_nothing():
    from gen2res.tables import orderings
    paper = [dict(table='1', kind='4 moderate', restorer='SwinIR', method=m, metric='psnr', value=v) for m,v in (('tuned', '25'), ('pre-trained', '24'))]
    row = dict(kind='2 moderate', method='tuned', minus='pre-trained', metric='psnr', value=1., low=float('nan'), high=float('nan'))
    assert [o['verdict'] for o in orderings([row], paper, '1')]==['undecided']

def test_a_bench_travels_whole(bench):
    "To a worker without this one's device: both networks as copies on the processor."
    s = bench.__getstate__(); assert s['restorer'].model is not bench.restorer.model and s['prior'] is not bench.prior
    s['restorer'].model.to('meta'); b = Tables.__new__(Tables)
    with pytest.raises(NotImplementedError, match='meta'): b.__setstate__(s)                # it is moved to where the prior is, which nothing can be from there
    assert all(p.device.type=='cpu' for p in bench.restorer.model.parameters())

def test_photos_of_the_paper(bench, monkeypatch):
    "Which of the paper's kinds each table is asked of by default, as its captions have it."
    want = {'1': SETS, '2': SETS[2:], '3': ('real',), '4': SETS[:1], '5': SETS[1:2], '6': SETS[:1], '8': SETS[2:3], '9': SETS[1:2], '10': SETS[:1], '11': SETS[1:2], '12': SETS[1:2], '13': SETS, '15': (SETS[0], SETS[2]),
            '16': (SETS[1], SETS[3]), '19': SETS[:1], '20': SETS[1:2], '21': SETS[:1], '22': SETS[1:2], '23': SETS, '24': SETS, '25': SETS, '26': ('4 mild', '8 mild')}
    assert {n: TABLES[n].paper for n in want}==want
    monkeypatch.setattr(tables, 'table', lambda b, k, *a, **kw: [k])
    assert [*TABLES['16'](bench)]==['2 severe', '4 severe'] and [*TABLES['20'](bench)]==['2 severe', '4 severe'] and [*TABLES['16'](bench, kinds=['8 mild'])]==['8 mild'] and [*TABLES['3'](bench)]==['real']

def test_a_face_of_64_pixels_is_shrunk_half_as_often(bench):
    assert bench.here(*SETS)==['2 moderate', '2 severe', '4 moderate', '4 severe'] and bench.here('8 mild')==['4 mild'] and [bench.N(k) for k in ('2 severe','4 severe','8 moderate')]==[2, 16, 16]
    bench.prior.side = 512
    try: assert bench.here(*SETS)==[*SETS] and bench.N('8 moderate')==16
    finally: bench.prior.side = 64
