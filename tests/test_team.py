"Several processes train what one would, and memory that runs out is not the end."
import json, os, socket, subprocess, sys
import pytest, torch
from safetensors.torch import load_file
from gen2res.prior import save_prior
from gen2res.train import Trainer
from gen2res.tune import tune

TINY = dict(image_size=16, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=[1,2], attention_pixels=[8], num_head_channels=32)
PICTURES = torch.randint(0, 255, (12,3,16,16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
KW = dict(arch=TINY, iters=6, batch=4, lr=1e-3, warmup=0, ema=.5, amp=False, log_every=2, val_every=2, device='cpu')

WORK = '''
import sys, torch
from pathlib import Path
from gen2res.prior import load_prior, save_prior
from gen2res.train import Trainer
from gen2res.tune import tune
sys.path.insert(0, sys.argv[1])
from test_team import KW, PICTURES
out = Path(sys.argv[2])
t = Trainer(PICTURES, out/'run', val=PICTURES[:2], **KW); t.run(False)
tuned = tune(load_prior(out/'prior', 'cpu'), PICTURES[:4].float()/127.5-1, iters=4, lr=1e-3, dropout=0., folder=out/'tuning')
save_prior(tuned, out/f'tuned_{t.team.process_index}')
'''

def alone(out, prior):
    Trainer(PICTURES, out/'run', val=PICTURES[:2], **KW).run(False)
    return tune(prior, PICTURES[:4].float()/127.5-1, iters=4, lr=1e-3, dropout=0.)

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def launched(script, *args, n=2):
    "As accelerate launch starts them, on the CPU: (exit codes, what they complained of)."
    shared = os.environ | dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    each = [subprocess.Popen([sys.executable, str(script), *map(str, args)], env=shared | dict(RANK=str(i), LOCAL_RANK=str(i)), stderr=subprocess.PIPE, text=True) for i in range(n)]
    try: said = [p.communicate(timeout=200)[1] for p in each]
    finally: [p.kill() for p in each]
    return [p.returncode for p in each],said

def same(a, b): return max((a[k]-b[k]).abs().max().item() for k in a | b)
def apart(a, b, start):
    "How far two trainings came apart, over how far they went (Adam makes large steps of small gradients, their rounding included)."
    norm = lambda x, y: sum((x[k]-y[k]).pow(2).sum() for k in x).sqrt().item()
    return norm(a, b)/norm(b, start)

def test_two_processes_train_what_one_would(tmp_path, tiny):
    save_prior(tiny, tmp_path/'prior'); (tmp_path/'work.py').write_text(WORK)
    codes,said = launched(tmp_path/'work.py', os.path.dirname(__file__), tmp_path)
    assert codes==[0, 0], said
    tuned = alone(tmp_path/'alone', tiny); weights = lambda p: load_file(p/'model.safetensors')
    assert apart(weights(tmp_path/'run'/'prior'), weights(tmp_path/'alone'/'run'/'prior'), Trainer(PICTURES, None, **KW).model.state_dict()) < .01
    assert same(weights(tmp_path/'tuned_0'), weights(tmp_path/'tuned_1'))==0 and apart(weights(tmp_path/'tuned_0'), tuned.model.state_dict(), tiny.model.state_dict()) < .01
    logs = [[json.loads(l) for l in (d/'run'/'log.jsonl').read_text().splitlines()] for d in (tmp_path, tmp_path/'alone')]
    assert [r['it'] for r in logs[0]]==[2, 4, 6] and all(abs(a['loss']-b['loss'])<1e-3 for a,b in zip(*logs))

RESTORER = '''
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_team import tuned_restorer
from gen2res.restorers import save_restorer
from gen2res.train import team
r = tuned_restorer(Path(sys.argv[2])/'run'); save_restorer(r, Path(sys.argv[2])/f'r{team().process_index}.safetensors')
'''

def untuned_restorer():
    from gen2res.restorers import small_swinir
    torch.manual_seed(0); return small_swinir(32, fold=2, width=12, depths=(2,), heads=2)

def tuned_restorer(out):
    from gen2res.restorers import tune_restorer
    photos = torch.nn.functional.interpolate(PICTURES.float(), 32, mode='bilinear').byte()
    return tune_restorer(untuned_restorer(), photos, photos.flip(-1), photos.flip(0), 32, out, iters=3, batch=4, lr=1e-3, log_every=1, val_every=0)

def test_two_processes_tune_a_restorer_as_one_would(tmp_path):
    from gen2res.restorers import save_restorer
    (tmp_path/'work.py').write_text(RESTORER)
    codes,said = launched(tmp_path/'work.py', os.path.dirname(__file__), tmp_path); assert codes==[0, 0], said
    save_restorer(tuned_restorer(tmp_path/'alone'), tmp_path/'alone.safetensors'); save_restorer(untuned_restorer(), tmp_path/'start.safetensors')
    a,b,whole,start = ({k: v for k,v in load_file(tmp_path/f'{n}.safetensors').items() if v.is_floating_point()} for n in ('r0', 'r1', 'alone', 'start'))
    assert same(a, b)==0 and apart(a, whole, start) < .05
    logs = [[json.loads(l)['loss'] for l in (d/'log.jsonl').read_text().splitlines()] for d in (tmp_path/'run', tmp_path/'alone')]
    assert len(logs[0])==3 and all(abs(x-y)<1e-3 for x,y in zip(*logs))

def test_a_batch_that_cannot_be_shared(tmp_path):
    (tmp_path/'work.py').write_text('from test_team import *\nTrainer(PICTURES, None, **KW | dict(batch=3)).run(False)')
    (tmp_path/'test_team.py').write_text(open(__file__).read())
    assert 'a batch of 3 cannot be shared by 2 processes' in launched(tmp_path/'work.py')[1][0]

class Short:
    "A device with room for so many pictures at a time, fewer if activations are kept."
    def __init__(self, trainer, monkeypatch, room):
        self.trainer,self.room,self.tried,real = trainer,room,[],trainer.predict
        def predict(net, x, t):
            out = real(net, x, t)                                                             # what was drawn until there is no room is drawn
            if not self.fits(len(x)): raise torch.OutOfMemoryError('full')
            return out
        monkeypatch.setattr(trainer, 'predict', predict)
    def fits(self, n):
        self.tried.append((n, self.trainer.model.c.use_checkpoint))
        return n*(1 if self.trainer.model.c.use_checkpoint else 4) <= self.room

@pytest.mark.parametrize('room,tried', [(16, [(4, False)]), (4, [(4, False), (4, True)]), (2, [(4, False), (4, True), (2, True), (2, True)])])
def test_memory_that_runs_out(room, tried, monkeypatch):
    whole,short = Trainer(PICTURES, None, **KW),Trainer(PICTURES, None, **KW); device = Short(short, monkeypatch, room)
    whole.step(); short.step()
    assert device.tried==tried and same(whole.model.state_dict(), short.model.state_dict()) < 1e-5
    short.step(); assert device.tried[len(tried):]==[tried[-1]]*(4//tried[-1][0])                 # it does not try in vain again

def test_memory_that_runs_out_and_dropout(monkeypatch):
    "Computed twice instead of kept, activations are dropped as they were."
    kw = KW | dict(arch=KW['arch'] | dict(dropout=.3)); whole,short = Trainer(PICTURES, None, **kw),Trainer(PICTURES, None, **kw)
    for t in (whole, short): t.step(); t.step()                                               # at first nothing passes the last layer, which is zero
    device = Short(short, monkeypatch, 4); whole.step(); short.step()
    assert device.tried[-1]==(4, True) and same(whole.model.state_dict(), short.model.state_dict()) < 1e-5

def test_no_memory_at_all(monkeypatch):
    t = Trainer(PICTURES, None, **KW); Short(t, monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError): t.step()
    assert not Trainer(PICTURES, None, **KW).prior().model.config['use_checkpoint']
