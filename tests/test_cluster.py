"Jobs on a dask scheduler with two workers, one of which dies at work."
import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from gen2res.bench import Bench, Dask
from gen2res.explore import job_path
from gen2res.restore import restore
pytest.importorskip('distributed')

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '1', 'DASK_DISTRIBUTED__ADMIN__LOG_FORMAT': '%(message)s'}
def start(*args): return subprocess.Popen([sys.executable, '-m', 'distributed.cli.dask_'+args[0], *args[1:]], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

@pytest.fixture(scope='module')
def scheduler(tmp_path_factory):
    "(address, its workers) on 127.0.0.1, stopped by pid in the end."
    file = tmp_path_factory.mktemp('scheduler')/'scheduler.json'; workers = []
    one = start('scheduler', '--host', '127.0.0.1', '--port', '0', '--no-dashboard', '--scheduler-file', str(file))
    try:
        for _ in range(300):
            if file.exists() and file.stat().st_size: break
            time.sleep(.1)
        yield json.loads(file.read_text())['address'],workers
    finally:
        for p in (*workers, one): p.kill(); p.wait()

@pytest.fixture
def cluster(scheduler, tmp_path):
    "(address, two living workers): a test that kills some leaves it to the next to start others."
    from distributed import Client
    address,workers = scheduler; workers[:] = [w for w in workers if w.poll() is None]
    while len(workers)<2: workers.append(start('worker', address, '--host', '127.0.0.1', '--nthreads', '1', '--no-nanny', '--no-dashboard', '--local-directory', str(tmp_path/f'w{len(workers)}')))
    with Client(address, timeout=30, set_as_default=False) as c:
        c.wait_for_workers(2, timeout=60)
        c.run(lambda: __import__('gen2res.bench') and None)                    # else the first to have imported torch does all the work
    return address,workers

def bench_of(tiny, folder, diary, engine=None):
    class Walks(Bench):                                                # defined here, so that it travels whole
        def do(self, K, seed):
            with open(diary, 'a') as f: f.write(f'{os.getpid()} {K} {seed}\n')
            time.sleep(.15)
            return dict(x=restore(torch.zeros(1, 3, 16, 16), self.prior, K, 4, seeds=seed))
    return Walks('', tiny, folder, **(dict(engine=engine) if engine else {}))

def test_one_worker_dies_and_nothing_is_lost(cluster, tiny, tmp_path):
    torch.set_num_threads(1)
    address,workers = cluster
    jobs = [dict(K=K, seed=s) for K in (50, 100, 200) for s in range(10)]
    diary = tmp_path/'diary.txt'; diary.touch()
    class Killing(Dask):
        "The same engine; when a third of the results are in, a worker is killed."
        def __call__(self, do, jobs):
            for i,r in enumerate(super().__call__(do, jobs)):
                if i==10: workers[0].kill()
                yield r
    made = bench_of(tiny, tmp_path/'far', diary, Killing(address)).done(jobs)
    done = [tuple(l.split()) for l in diary.read_text().splitlines()]
    pids = {int(d[0]) for d in done}
    assert pids=={w.pid for w in workers} and workers[0].poll() is not None          # both worked, one is dead
    assert {d[1:] for d in done}=={(str(j['K']), str(j['seed'])) for j in jobs}       # none lost
    assert len(list((tmp_path/'far').iterdir()))==len(jobs)                           # each kept once
    near = bench_of(tiny, tmp_path/'near', diary).done(jobs)
    assert all(torch.equal(a['x'], b['x']) for a,b in zip(made, near))
    for j in jobs:                                                                    # the files themselves
        with np.load(job_path(tmp_path/'far', j)) as a, np.load(job_path(tmp_path/'near', j)) as b: assert all((a[k]==b[k]).all() for k in a)

def test_what_is_there_is_not_sent(cluster, tiny, tmp_path):
    diary = tmp_path/'diary.txt'; jobs = [dict(K=50, seed=s) for s in range(3)]
    bench_of(tiny, tmp_path/'w', diary).done(jobs[:2])
    bench_of(tiny, tmp_path/'w', diary, Dask(cluster[0])).done(jobs)
    assert [l.split()[2] for l in diary.read_text().splitlines()]==['0','1','2']

def test_a_failing_job_is_told_and_the_others_are_kept(cluster, tiny, tmp_path):
    class Odd(Bench):
        def do(self, n):
            if n==3: raise ValueError('three is wrong')
            return dict(x=torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match='three is wrong'): Odd('', tiny, tmp_path/'w', engine=Dask(cluster[0])).done([dict(n=n) for n in range(4)])
    assert not list((tmp_path/'w').glob('.*')) and len(list((tmp_path/'w').iterdir()))<=3

def test_no_scheduler_is_one_line(tiny, tmp_path):
    with pytest.raises(OSError, match='127.0.0.1:1'): bench_of(tiny, tmp_path/'w', tmp_path/'d', Dask('tcp://127.0.0.1:1')).done([dict(K=1, seed=0)])

def test_addresses_are_checked_before_anything_is_made():
    for bad in ('garbage', 'foo://x:1', 'tcp://host', '127.0.0.1:8786'):
        with pytest.raises(ValueError, match='not the address of a scheduler'): Dask(bad)
    with pytest.raises(ValueError, match='--tls-cert'): Dask('tls://127.0.0.1:8786')

def test_a_job_that_kills_its_workers_is_one_line(cluster, tiny, tmp_path):
    class Deadly(Bench):
        def do(self, n): os._exit(1)
    with pytest.raises((RuntimeError, OSError)) as e: Deadly('', tiny, tmp_path/'w', engine=Dask(cluster[0])).done([dict(n=0)])
    assert 'worker' in str(e.value)
