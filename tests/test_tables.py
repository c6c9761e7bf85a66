"The second paper's tables, at sizes of seconds."
import numpy as np, pytest, torch
from gen2res import tables
from gen2res.explore import among, read_rows, save_rows
from gen2res.restorers import load_restorer, small_swinir
from gen2res.images import ImageError, save_image
from gen2res.tables import NAMES, SETS, TABLES, Tables, choices, photos

@pytest.fixture
def data(tmp_path):
    g = np.random.default_rng(0)
    for split,n in (('train', 6), ('val', 3)): np.savez(tmp_path/f'faces_{split}_64.npz', images=g.integers(0, 255, (n,64,64,3), dtype=np.uint8))
    return tmp_path

@pytest.fixture
def bench(data, tiny, tmp_path, monkeypatch):
    tiny.side = 64
    monkeypatch.setattr(tables, 'TUNING', dict(iters=1, batch=2, lr=1e-4)); monkeypatch.setattr(tables, 'N_PHOTOS', 4); monkeypatch.setattr(tables, 'pseudo_numbers', lambda p, K=8, L=2, N=2, steps=2: dict(K=min(K, 8), L=L, N=N, steps=2))
    real = tables.pseudo_targets
    monkeypatch.setattr(tables, 'pseudo_targets', lambda y, prior, **kw: real(y, prior, **(dict(K=8, L=2, steps=2) | kw)))
    torch.manual_seed(0)
    return Tables(data, tiny, tmp_path/'w', small_swinir(64, width=12, depths=(2,), heads=2))

def test_photos_are_damaged_alike_and_differ_by_split(data):
    y,truth = photos(data, '8 severe', 'val'); again,_ = photos(data, '8 severe', 'val', 2)
    assert y.shape==truth.shape==(3,3,64,64) and torch.equal(y[:2], again) and not torch.equal(photos(data, '4 severe', 'val')[0], y)

ONCE = [n for n in {f: n for n,f in reversed(list(TABLES.items()))}.values() if n not in ('5','8','9','16','27')] # those with several numbers by their first; 9 and 16 are 4 and 15 on other photos

@pytest.mark.parametrize('name', ONCE)
def test_every_table(name, bench, tmp_path):
    kw = dict(kinds=SETS[:1]) | (dict(ns=(2,None)) if name=='4' else {})
    bench.methods = {'6': ['L1'], '21': ['N 32'], '22': ['N 32']}.get(name)
    rows = read_rows(save_rows(TABLES[name](bench, **kw), tmp_path/'t.csv')); alone = among(rows, minus='')
    assert {r['metric'] for r in alone}=={*NAMES, 'fd64'} and len({r['method'] for r in alone})>=2 and all(r['low']<=r['value']<=r['high'] for r in alone) and all(r['n']==3 for r in rows)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'w').iterdir()}
    list(TABLES[name](bench, **kw)); assert made=={p: p.stat().st_mtime_ns for p in (tmp_path/'w').iterdir()}
    bench.work = tmp_path/'elsewhere'; assert read_rows(save_rows(TABLES[name](bench, **kw), tmp_path/'again.csv'))==rows and not bench.work.exists()   # from the ledger

def test_the_table_of_times(bench):
    rows = {r['method']: r for r in TABLES['27'](bench, repeats=1)}
    assert float(rows['restorer, tuned or not']['over_restorer'])==1 and all(float(r['seconds'])>0 for r in rows.values())
    both = float(rows['targets']['millions']); assert abs(both-float(rows['one step of the prior']['millions'])-float(rows['restorer, tuned or not']['millions']))<.011

def test_every_table_of_the_paper_has_a_function():
    assert {*map(str, range(1, 28))}-{*TABLES}=={'3'}                         # real photos: `bench set-...`

def test_tables_about_codeformer(bench, data, codeformer, monkeypatch):
    with pytest.raises(ValueError, match='is about CodeFormer'): list(TABLES['5'](bench))
    np.savez(data/'faces_val_64.npz', images=np.random.default_rng(1).integers(0, 255, (2,64,64,3), dtype=np.uint8)); tables.data_hash.cache_clear()
    bench,losses = Tables(bench.data, bench.prior, bench.work, load_restorer(codeformer, device='cpu'), n=1),[]
    def noted(restorer, y, x, real, side, run, **kw): losses.append(kw['losses']); run.mkdir(parents=True); return lambda y: y      # the training itself: test_codeformer_is_tuned_in_part
    monkeypatch.setattr(tables, 'tune_restorer', noted)
    for name,bench.methods in (('5', ['encoder']), ('8', ['token 1.0'])):
        alone = [r for r in TABLES[name](bench, kinds=SETS[1:2]) if r['minus']=='']
        assert len({r['method'] for r in alone})==2 and all(r['n']==2 for r in alone)
    assert losses==[dict(tuned=['encoder']), None, dict(token=1.)]
    with pytest.raises(ValueError, match='any restorer but CodeFormer'): list(TABLES['6'](bench))

def test_more_of_codeformer_is_held_at_4x(bench, faces64, codeformer):
    bench.prior,bench.restorer = faces64,load_restorer(codeformer, device='cpu'); faces64.side = 512
    try: assert [bench.N(k) for k in SETS]==[8, 8, 16, 16] and [*choices(faces64, bench.N(SETS[1]))][:4]==['ours', 'N 4', 'N 16', 'N 32']
    finally: faces64.side = 64

def test_jobs_know_all_that_they_depend_on(bench, monkeypatch):
    a = bench.tuned('4 moderate'); b = Tables(bench.data, bench.prior, bench.work, bench.restorer, iters=2).tuned('4 moderate')
    assert a!=b and a['prior']==bench.prior.fingerprint() and len(a['restorer'])==12

def test_targets_of_the_photo_itself(bench):
    from gen2res.pseudo import pseudo_targets
    [x] = bench.done([bench.targets('4 moderate', first=False)])
    want = pseudo_targets(photos(bench.data, '4 moderate', 'val')[0], bench.prior, K=8, L=2, steps=2, seeds=0)
    assert (x-want).abs().max() < .02

def test_choices_differ_from_ours_in_what_they_say(faces64):
    c = choices(faces64, 2)
    assert c=={'ours': {}, 'N 32': dict(N=4), 'N 64': dict(N=8), 'L 0': dict(L=0), 'L 180': dict(L=21), 'K 900': dict(K=632), 'free from 180': dict(K=21, L=1000), 'free from 360': dict(K=61, L=1000), 'free from 600': dict(K=211, L=1000), 'free from 900': dict(K=632, L=1000)}

def test_people_of_the_two_halves_are_apart_and_sources_mixed(tmp_path):
    images = np.repeat(np.arange(40, dtype=np.uint8), 2)[:,None,None,None]*np.ones((1,64,64,3), dtype=np.uint8)      # two pictures of each of 40, by source in order
    np.savez(tmp_path/'faces_train_64.npz', images=images, subject=np.repeat([f's{i:02}' for i in range(40)], 2))
    a,b = [((tables._half(tmp_path, w)[:,0,0,0]+1)*127.5).round().tolist() for w in (0, 1)]
    assert len(a)+len(b)==80 and not set(a)&set(b) and min(a[:20])<13 and max(a[:20])>26

def test_the_interval_of_fd64_holds_its_value():
    from gen2res.tables import set_score
    x = torch.rand(30,3,64,64)*2-1; soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    same,other = (set_score(t, x) for t in (x, soft))
    assert same[0]<1e-3 and other[1]<=other[0]<=other[2] and other[1]>same[2]
    assert set_score(x[:3], x[:3])[2]==float('inf')                           # one group: nothing is known about the spread

def test_other_photos_are_other_jobs(bench, data, tmp_path):
    np.savez(data/'faces_val_64.npz', images=np.zeros((3,64,64,3), dtype=np.uint8)); tables.data_hash.cache_clear()
    assert Tables(data, bench.prior, tmp_path/'w', bench.restorer).job('restored', kind='4 moderate')!=bench.job('restored', kind='4 moderate')

def test_folders_of_pictures_at_any_side(tmp_path, tiny):
    for split,n in (('train', 4), ('val', 2)):
        for i in range(n): save_image(torch.rand(1,3,40,30)*2-1, tmp_path/split/f'{i}.png')
    torch.manual_seed(0); bench = Tables(tmp_path, tiny, tmp_path/'w', small_swinir(16, fold=2, width=12, depths=(2,), heads=2), n=2, iters=1)
    y,truth = bench.photos('4 moderate'); [x] = bench.done([bench.tuned('4 moderate', targets='truth')])
    assert y.shape==truth.shape==x.shape==(2,3,16,16) and not any((bench.work/'unfinished').iterdir())
    a = bench.ids['data']; (tmp_path/'val'/'0.png').unlink(); tables.data_hash.cache_clear()
    assert Tables(tmp_path, tiny, bench.work, bench.restorer).ids['data']!=a
    with pytest.raises(ImageError, match='neither faces_val_16.npz nor a folder val'): Tables(tmp_path/'train', tiny, bench.work, bench.restorer)

def test_only_the_methods_asked_for(bench):
    bench.methods = ['dr2']
    rows = list(TABLES['2'](bench, kinds=SETS[:1]))
    assert {r['method'] for r in rows}=={'dr2', 'ours'} and len(list(bench.work.glob('*.npz')))==2+2         # with what they are compared with, and what both start from
    bench.methods = ['dr3']
    with pytest.raises(ValueError, match="no method 'dr3' here; there are: pre-trained, ours, difface"): list(TABLES['2'](bench, kinds=SETS[:1]))
