"The machinery of the claims: jobs, pairing, tables."
import shutil
import numpy as np, pytest, torch
from gen2res import claims
from gen2res.explore import SCORES, among, compared, do_jobs, job_path, lines, read_job, read_rows, save_rows, scores
from gen2res.claims import CLAIMS, Claims, person, portrait, walks
from gen2res.bench import Bench, portraits
from gen2res.images import ImageError, astronaut, resize, save_image
from gen2res.restore import Restorer, restore

@pytest.fixture
def data(tmp_path):
    g = np.random.default_rng(0); noise = lambda n, s: g.integers(0, 255, (n,s,s,3), dtype=np.uint8)
    np.savez(tmp_path/'faces_val_64.npz', images=noise(3, 64))
    np.savez(tmp_path/'faces_train_64.npz', images=noise(4, 64)); np.savez(tmp_path/'cats_64.npz', images=noise(34, 64)); np.savez(tmp_path/'old_photos_64.npz', images=noise(2, 64))
    np.savez(tmp_path/'albums_128.npz', images=noise(12, 128), subject=np.repeat(['a', 'b'], 6), video=np.tile(['u','u','v','v','w','w'], 2))
    return tmp_path

@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(claims, 'TUNING', dict(iters=1, batch=1, lr=1e-4)); monkeypatch.setattr(claims, 'ALBUM', dict(n=2, album_steps=2, every=1))
    for preset in ('generative', 'personal'): monkeypatch.setitem(claims.PRESETS, preset, dict(iters=2, batch=1, lr=1e-4))
    monkeypatch.setattr(claims, 'plans', lambda above, t: {m: claims.made_job({}, below=t*i or None) for i,m in enumerate(('fast','below'))})
    for name,Ks in (('KS', (50,200)), ('OWN_KS', (100,))): monkeypatch.setattr(claims, name, Ks)

def small(monkeypatch):
    "Walks of two steps, two queries a person."
    monkeypatch.setattr(claims, 'person', lambda *args, real=claims.person, **kw: real(*args, queries=2, **kw))
    monkeypatch.setattr(claims, 'restore', lambda y, prior, K, steps, *args, real=claims.restore, **kw: real(y, prior, K, 2, *args, **kw))

def test_killed_jobs_are_missing_and_done_ones_are_kept(tmp_path):
    done = []
    def do(n):
        if n==2 and not done.count(2): done.append(2); raise KeyboardInterrupt
        done.append(n); return dict(x=torch.zeros(1,3,2,2))
    jobs = [dict(n=n) for n in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt): do_jobs(jobs, do, tmp_path)
    do_jobs(jobs, do, tmp_path)
    assert done==[1,2,2,3] and job_path(tmp_path, dict(a=1, b=2))==job_path(tmp_path, dict(b=2, a=1))

def test_pictures_survive_in_eight_bits(tmp_path):
    x = torch.rand(2,3,4,4)*2-1
    [p] = do_jobs([dict(n=0)], lambda n: dict(x=x), tmp_path)
    assert (read_job(p)['x']-x).abs().max() <= 1/255+1e-6

def test_album_and_queries_are_of_different_videos(data):
    y,truth,album = person(data, 1, 'camera')
    another = person(data, 1, 'camera', of=0); assert torch.equal(another[0], y) and torch.equal(another[2], person(data, 0, 'camera')[2]) and not torch.equal(another[2], album)
    a = np.load(data/'albums_128.npz'); images = torch.from_numpy(a['images']).permute(0,3,1,2).float()/127.5-1
    mine = lambda v: resize(images[torch.from_numpy((a['subject']=='b') & np.isin(a['video'], v))], 64).clamp(-1, 1)
    assert torch.equal(album, mine(['u','v'])) and torch.equal(truth[:2], mine(['w'])) and torch.equal(truth[2:4], truth[:2]) and len(truth)==5 and not torch.equal(y[0], y[2]) and y.shape==truth.shape and not torch.equal(y, truth)

def test_albums_in_folders(tmp_path):
    one = lambda shade: torch.full((1,3,24,20), shade)
    for who,files in (('ann', ['june/1', 'june/2', 'may/1']), ('bob', ['1', '2'])):
        for i,f in enumerate(files): save_image(one(i/4), tmp_path/'albums'/who/f'{f}.png')
    for i in range(2): save_image(one(-.5), tmp_path/'val'/f'{i}.png')
    _,truth,album = person(tmp_path, 0, 'small', 32); assert truth.shape==(5,3,32,32) and album.mean((1,2,3)).tolist()==pytest.approx([0, .25], abs=.01) and truth[0].mean()==pytest.approx(.5, abs=.01)
    _,truth,album = person(tmp_path, 1, 'small', 32); assert len(album)==1 and truth[0].mean()==pytest.approx(.25, abs=.01)    # no occasions: the last picture is the photo
    assert portrait(tmp_path, 1, 'jpeg', 32)[0].shape==(1,3,32,32)
    with pytest.raises(ImageError, match='neither faces_train_32.npz nor a folder train'): portraits(tmp_path, 'train', 32)

def test_a_portrait_is_always_damaged_alike(data):
    assert torch.equal(portrait(data, 2, 'jpeg')[0], portrait(data, 2, 'jpeg')[0]) and not torch.equal(portrait(data, 2, 'jpeg')[0], portrait(data, 2, 'small')[0])

def test_the_best_known_have_the_largest_albums(tmp_path):
    frames = dict(a=(3, 2), b=(2, 4, 1), c=(9,), d=(4, 3, 2))               # of each video; the last is asked about
    who,video = zip(*((s, f'{s}{v}') for s,ns in frames.items() for v,n in enumerate(ns) for _ in range(n)))
    np.savez(tmp_path/'albums_64.npz', images=np.zeros((len(who), 64, 64, 3), np.uint8), subject=np.array(who), video=np.array(video))
    assert claims.best_known(tmp_path, 2)==[1, 3] and claims.best_known(tmp_path, 3)==[0, 1, 3]

def test_walks_are_restorations(tiny):
    y = torch.rand(2,3,16,16)*2-1; x = walks(Restorer(tiny), y, (100,200), (3,4), 5)
    from gen2res.schedule import equivalent_K
    K = equivalent_K(200, 256, 16)
    assert x.shape==(2,2,2,3,16,16) and torch.allclose(x[1,1,0], restore(y[1:], tiny, K, min(5, K), seeds=[3])[0], atol=1e-5)

def test_every_picture_is_scored_against_its_own_truth():
    truth = torch.rand(2,3,64,64)*2-1; x = truth[:,None,None].repeat(1,2,3,1,1,1); x[0] *= .5
    s = scores(x, truth); one = scores(x[0,0], truth[:1].repeat(3,1,1,1))
    assert s.shape==(2,2,3,len(SCORES)) and s[0,1]==pytest.approx(one, abs=1e-4) and s[1,...,SCORES.index('ids64')]==pytest.approx(1, abs=1e-5)

def test_pairing_narrows_the_interval(tmp_path):
    g = np.random.default_rng(0); a = g.normal(0, 5, (30,1)); b = a+1+g.normal(0, .1, (30,1))
    rows = read_rows(save_rows(compared(dict(a=a, b=b), 'a', ['m']), tmp_path/'t.csv'))
    [diff] = among(rows, method='b', minus='a'); [alone] = among(rows, method='b', minus='')
    assert diff['value']==pytest.approx(1, abs=.1) and diff['low']>.9 and alone['high']-alone['low'] > 10*(diff['high']-diff['low']) and diff['n']==30
    assert any('b - a' in l for l in lines(rows, ['m']))

def test_results_depend_on_the_prior(data, tiny64, tmp_path, quick):
    job = dict(kind='portrait', who=0, damage='small', Ks=[50], seeds=[0], steps=2)
    made = lambda: set((tmp_path/'w').glob('*.npz'))
    Claims(data, tiny64, tmp_path/'w').results([dict(free=job)], 'free'); before = made()
    with torch.no_grad(): next(tiny64.model.parameters()).add_(1)
    Claims(data, tiny64, tmp_path/'w').results([dict(free=job)], 'free')
    assert len(before)==1 and len(made())==2

@pytest.mark.parametrize('name,line', [('K', 'val: number 2 of the people is asked for, and there are 2'), ('identity', 'albums: number 2 of the people is asked for, and there are 2')])
def test_people_that_are_not_there_are_missed_before_any_work(name, line, tiny64, tmp_path, monkeypatch):
    for i in range(2):
        save_image(astronaut(64)*(1-.3*i), tmp_path/'val'/f'{i}.png')
        for v in 'ab': save_image(astronaut(64)*(1-.3*i), tmp_path/'albums'/str(i)/v/'0.png')
    monkeypatch.setattr(Claims, 'do', lambda *a, **kw: pytest.fail('worked'))
    with pytest.raises(ImageError, match=line): list(CLAIMS[name](Claims(tmp_path, tiny64, tmp_path/'w')))

@pytest.mark.parametrize('name', list(CLAIMS))
def test_every_claim_makes_its_table(name, data, tiny64, tmp_path, quick, monkeypatch):
    small(monkeypatch)
    kw = dict(people=range(2)) | ({} if name in ('identity', 'albums', 'sizes', 'crowd', 'seeds', 'preset', 'preset-own', 'plans', 'softness', 'fast', 'fast-own', 'adapter', 'old') else dict(damages=('small',)))
    if name=='fast': kw['chosen'] = 'below',; monkeypatch.setattr('gen2res.restore.album_K', lambda prior: 4)
    if name=='fast-own': kw['chosen'] = 'below'
    if name=='plans': kw['bases'] = 'fast','below'
    if name=='cats': kw = dict(damages=('small',), n=2, steps=2, training=dict(iters=1, batch=1, lr=1e-4))
    if name=='auto': kw = dict(damages=('small',), strengths=(1,), n=2)
    if name=='detail': monkeypatch.setattr('gen2res.restore.album_K', lambda prior: 4)
    if name in ('guidance','scale'): kw['steps'] = 2; monkeypatch.setattr(claims, 'ALBUM_EVERY', 1); monkeypatch.setattr(claims, 'EVERYS', (0, 1)); monkeypatch.setattr(claims, 'SCALES', (.6, 1.))
    if name=='sizes': monkeypatch.setattr(claims, 'SIZES', (1, None))
    if name=='crowd': monkeypatch.setattr(claims, 'CROWDS', (3,))
    rows = list(CLAIMS[name](Claims(data, tiny64, tmp_path/'w'), **kw))
    assert rows and {r['metric'] for r in rows} >= set(dict(cats=claims.CAT_SCORES, old=claims.REAL_SCORES).get(name, SCORES)) and all(r['n']==2 for r in rows) and any(r['minus'] for r in rows)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'w').iterdir()}
    assert list(CLAIMS[name](Claims(data, tiny64, tmp_path/'w'), **kw))==rows and made=={p: p.stat().st_mtime_ns for p in (tmp_path/'w').iterdir()}
    assert list(CLAIMS[name](Claims(data, tiny64, tmp_path/'elsewhere', ledger=tmp_path/'w'/'scores.jsonl'), **kw))==rows and not (tmp_path/'elsewhere').exists()

def test_kept_is_the_share_of_the_photos_error():
    g = torch.Generator().manual_seed(0); truth,error,other = torch.randn(3, 2, 3, 32, 32, generator=g).unbind(0); y = truth+error
    x = torch.stack([y, truth, truth+.5*error, truth+other], 1)                       # photos x pictures
    share = claims.kept(x, y, truth)
    assert share.shape==(2, 4, 1) and np.allclose(share[:,:3,0], [1, 0, .5], atol=1e-5) and abs(share[:,3]).max()<.06 and np.allclose(claims.kept(y, y, truth), 1)

def test_a_crowd_is_drawn_from_what_the_prior_was_trained_on(data):
    train = portraits(data, 'train', 64)['images']; drawn = [claims.crowd(data, 3, d) for d in range(4)]
    which = [[int((train==x).flatten(1).all(1).nonzero()) for x in d] for d in drawn]
    assert all(len({*w})==3 for w in which) and len({*map(tuple, which)})>1 and torch.equal(claims.crowd(data, 3, 2), drawn[2])

def test_cats_kept_back_are_not_learned(data):
    learn,back = claims.cats(data)
    assert len(learn)==32 and len(back)==2 and not any((learn==c).flatten(1).all(1).any() for c in back)

class Doubles(Bench):
    "Jobs of one number; how often they are done is counted."
    count = 0
    def do(self, n): self.count += 1; return dict(x=torch.full((1,3,2,2), n/127.5-1))
    def score(self, job, pictures, names): return {m: pictures['x'].mean((1,2,3)).numpy()*(2 if m=='twice' else 1) for m in names}

def test_a_line_cut_short_takes_no_other_with_it(tiny, tmp_path):
    b = Doubles('', tiny, tmp_path/'w'); b.scored([dict(n=0)], ['once'])
    with open(b.ledger.path, 'a') as f: f.write('{"job": {"n": 7')                # killed
    b.scored([dict(n=255)], ['once']); assert len(b.ledger.read())==2

def test_a_ledger_survives_a_kill_and_learns_new_metrics(tiny, tmp_path):
    b = Doubles('', tiny, tmp_path/'w', ledger=tmp_path/'results'/'scores.jsonl'); jobs = [dict(n=0), dict(n=255), dict(n=0)]
    assert b.scored(jobs, ['once'])==[dict(once=[-1.]), dict(once=[1.]), dict(once=[-1.])] and b.count==2
    text = b.ledger.path.read_text(); assert len(text.splitlines())==2 and str(tmp_path) not in text
    b.ledger.path.write_text(text[:-9])                                        # killed while it wrote the last line
    assert b.scored(jobs, ['once'])[1]==dict(once=[1.]) and b.count==2           # the pictures are still there
    shutil.rmtree(b.work)
    assert b.scored(jobs, ['once'])[1]['once']==[1.] and b.count==2              # the torn line took nothing along
    assert b.scored(jobs[:1], ['once','twice'])==[dict(once=[-1.], twice=[-2.])] and b.count==3
