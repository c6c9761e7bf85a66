"Measurements: on a made-up data folder, the right signs, whole tables."
import csv
import numpy as np, pytest, torch
from typer.testing import CliRunner
from gen2res.bench import DESCRIPTORS, LADDERS, QUERIES, identity_test, load_faces, metric_order, metric_times, sane
from gen2res.explore import save_rows
from gen2res.cli import app
from gen2res.degrade import degrade
from gen2res.embedder import augmented
from gen2res.images import astronaut, resize, to_array

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
    assert len(rows)==len(DESCRIPTORS)*(4+len(QUERIES))
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
    r = CliRunner().invoke(app, ['bench', 'nothing']); assert r.exit_code==2 and 'there are: loop, speed, times, metrics, identity' in r.stderr

def test_passes_are_counted(tiny, monkeypatch):
    from gen2res import bench
    from gen2res.bench import Count, cost, cost_figure
    x = torch.zeros(3, 3, 16, 16, requires_grad=True)
    with Count(tiny.model) as c:
        tiny(x, 5).x0.sum().backward()
        with torch.no_grad(): tiny(x[:2], 5)
    assert (c.forwards, c.backwards, c.equivalents)==(5, 3, 11)
    tiny(x.detach(), 5); assert c.forwards==5                            # not any more
    monkeypatch.setitem(bench.PLANS, 'fast', (dict(n=8, every=2, steps=6, K=300), dict(iters=4, batch=2), 3))
    rows = list(cost(tiny, 'fast', .5)); by = {r['stage']: r for r in rows}
    assert [(by[s]['forwards'], by[s]['backwards']) for s in ('album','tuning','sampling')]==[(48, 24), (8, 8), (3, 0)]
    assert by['album']['done']==by['tuning']['done']==.5 and all(r['seconds']>0 and r['over_bare']>0 for r in rows)
    widths = [b.get_width() for b in cost_figure(rows).axes[0].patches]; assert widths==[96, 24, 3]
