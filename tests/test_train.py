"Training: resumable at any moment, honest about failure."
import json
from types import SimpleNamespace
import pytest, torch
from gen2res.images import ImageError, astronaut, save_image
from gen2res.prior import load_prior
from gen2res.schedule import Schedule
from gen2res.train import Diverged, Trainer, diffusion_loss, load_pictures, loss_weights, small_arch

ARCH = dict(image_size=16, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=[1], attention_pixels=[], patch=2)

@pytest.fixture
def pictures(): return ((torch.cat([astronaut(16).roll(i, -1) for i in range(12)])+1)*127.5).byte()

@pytest.mark.parametrize('out_channels', [3, 6])
def test_killed_and_resumed_is_the_same_run(pictures, tmp_path, out_channels):
    kw = dict(arch=ARCH | dict(out_channels=out_channels, dropout=.1), batch=4, warmup=3, ema=.9, iters=12, device='cpu')
    whole = Trainer(pictures, tmp_path/'a', **kw).run(progress=False)
    first = Trainer(pictures, tmp_path/'b', **kw)
    for _ in range(7): first.step()
    first.save(); del first
    second = Trainer(pictures, tmp_path/'b', **kw).run(progress=False)
    assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), second.model.parameters()))
    assert load_prior(tmp_path/'b'/'prior', 'cpu').variance==('learned' if out_channels==6 else 'fixed_small')

@pytest.mark.parametrize('at_once', [4, 2])
def test_weights_cast_together_learn_what_weights_cast_one_by_one_do(pictures, monkeypatch, at_once):
    for name in ('prior', 'train'): monkeypatch.setattr(f'gen2res.{name}.quick_bf16', lambda device: True)      # emulated, if need be
    together,single = (Trainer(pictures, None, ARCH | dict(attention_pixels=[8], dropout=.1), batch=4, iters=6, device='cpu') for _ in range(2))
    assert together.twin and together.net is not together.model
    single.twin,single.net = None,single.model
    for t in (together, single): t.at_once = at_once
    assert [together.step() for _ in range(6)]==[single.step() for _ in range(6)]
    assert all(torch.equal(a, b) for a,b in zip(together.model.parameters(), single.model.parameters()))
    cast = {id(q) for _,q in together.twin.pairs}
    assert all((q.dtype==torch.bfloat16)==(id(q) in cast) for q in together.net.parameters())                   # all else is shared, not copied
    assert {id(q) for q in together.net.parameters()}-cast <= {id(p) for p in together.model.parameters()}

def test_it_saves_by_the_clock(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, batch=2, iters=3, save_seconds=0., device='cpu')
    saves = []; real = t.save; t.save = lambda: (saves.append(t.it), real())
    t.run(progress=False)
    assert saves==[1, 2, 3, 3]

@pytest.mark.parametrize('iters', [3, 500])
def test_a_nan_never_reaches_the_disk(pictures, tmp_path, iters):
    t = Trainer(pictures, tmp_path, ARCH, batch=2, iters=iters, save_seconds=0., log_every=100, device='cpu')
    t.step(); t.save()
    with torch.no_grad(): t.model.out[2].weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='no longer a number'): t.run(progress=False)
    again = Trainer(pictures, tmp_path, ARCH, batch=2, iters=iters, device='cpu')
    assert again.it==1 and all(p.isfinite().all() for p in [*again.model.parameters(), *again.avg.parameters()]) 
    rescued = load_prior(tmp_path/'prior', 'cpu')
    assert rescued.card['iterations']==1 and all(p.isfinite().all() for p in rescued.model.parameters())

def test_an_infinite_gradient_moves_nothing(pictures, tmp_path, monkeypatch):
    t = Trainer(pictures, tmp_path, ARCH, batch=2, iters=5, device='cpu', ema=0.); t.step(); real = t.backward
    def steep(batch): loss = real(batch); next(t.model.parameters()).grad.fill_(float('inf')); return loss
    monkeypatch.setattr(t, 'backward', steep); before = [p.clone() for p in t.model.parameters()]
    with pytest.raises(Diverged, match='no longer a number at iteration 1') as e: t.run(progress=False)
    assert all(torch.equal(a, b) for a,b in zip(before, t.model.parameters())) and t.it==1
    assert all(torch.equal(a, b) for a,b in zip(before, e.value.result.model.parameters())) and load_prior(tmp_path/'prior', 'cpu').card['iterations']==1

def test_other_pictures_are_another_run(pictures, tmp_path):
    kw = dict(batch=2, iters=3, device='cpu'); Trainer(pictures, tmp_path, ARCH, **kw).save()
    with pytest.raises(ValueError, match='another pictures'): Trainer(pictures.flip(0), tmp_path, ARCH, **kw)
    assert Trainer(pictures, tmp_path, ARCH, lr=1e-5, boost=0., **kw | dict(iters=9)).iters==9            # a long run may be steered

def test_validation_by_its_own_clock(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, val=pictures[:2], batch=2, iters=3, log_every=2, val_every=3, device='cpu'); t.errors = lambda: {20: .5}
    t.run(progress=False)
    assert [('val' in json.loads(l)) for l in open(tmp_path/'log.jsonl')]==[False, True]
    assert load_prior(tmp_path/'prior', 'cpu').card['validation']=={'20': .5}                             # not lost when the run ends

def test_a_run_ends_with_a_validation(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, val=pictures[:2], batch=2, iters=3, val_every=2, device='cpu'); t.errors = lambda: {20: 1/t.it}
    t.run(progress=False)
    assert [json.loads(l).get('val') for l in open(tmp_path/'log.jsonl')]==[{'20': .5}, {'20': 1/3}] and load_prior(tmp_path/'best', 'cpu').card['iterations']==3

@pytest.mark.parametrize('change', [dict(arch=ARCH | dict(patch=1)), dict(batch=3), dict(seed=1), dict(schedule=Schedule.cosine())])
def test_another_run_is_not_resumed(pictures, tmp_path, change):
    kw = dict(arch=ARCH, batch=2, iters=3, device='cpu')
    Trainer(pictures, tmp_path, **kw).save()
    with pytest.raises(ValueError, match=f'another {list(change)[0]}'): Trainer(pictures, tmp_path, **(kw | change))

def test_a_broken_state_is_named(pictures, tmp_path):
    (tmp_path/'state.pt').write_text('junk')
    with pytest.raises(ValueError, match='state.pt: not a training state'): Trainer(pictures, tmp_path, ARCH, device='cpu')

def test_the_best_is_kept(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, val=pictures[:2], batch=2, iters=4, log_every=1, val_every=1, ema=0., device='cpu')
    scores = iter([.5, .2, .9, .3]); t.errors = lambda: {20: next(scores)}
    t.run(progress=False)
    assert load_prior(tmp_path/'best', 'cpu').card['iterations']==2 and load_prior(tmp_path/'prior', 'cpu').card['iterations']==4

def test_the_best_by_other_pictures_is_not_the_best_by_these(pictures, tmp_path):
    kw = dict(arch=ARCH, batch=2, val_every=2, device='cpu', iters=4); run = lambda val, **k: Trainer(pictures, tmp_path, val=val, **kw | k)
    run(pictures[:2]).run(progress=False)
    assert run(pictures[:2]).best < float('inf')==run(pictures[2:4]).best

def test_a_finished_run_started_again_keeps_what_was_measured(pictures, tmp_path):
    kw = dict(arch=ARCH, batch=2, val_every=2, device='cpu', iters=4, val=pictures[:2])
    card = lambda: (Trainer(pictures, tmp_path, **kw).run(progress=False), load_prior(tmp_path/'prior', 'cpu').card)[1]
    assert (first := card())==card() and first['validation']

def test_a_state_that_cannot_be_read_is_not_called_broken(pictures, tmp_path, monkeypatch):
    kw = dict(arch=ARCH, batch=2, iters=2, device='cpu'); Trainer(pictures, tmp_path, **kw).save()
    def denied(*a, **k): raise PermissionError(13, 'Permission denied', 'state.pt')
    monkeypatch.setattr(torch, 'load', denied)
    with pytest.raises(PermissionError): Trainer(pictures, tmp_path, **kw)

def test_a_team_without_a_common_folder_does_not_begin(pictures, tmp_path, monkeypatch):
    team = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True, device='cpu', gather=lambda t: torch.cat([t, t+3]))
    monkeypatch.setattr('gen2res.train.team', lambda: team)
    with pytest.raises(ValueError, match=r'go on at iterations \[0, 3\]: they must see the same folder'): Trainer(pictures, tmp_path, ARCH, batch=2, iters=2, device='cpu')

def test_resuming_trims_the_log(pictures, tmp_path):
    kw = dict(arch=ARCH, batch=2, iters=5, log_every=1, device='cpu')
    t = Trainer(pictures, tmp_path, **kw)
    for _ in range(2): t.log([t.step()])
    t.save(); t.log([t.step()])
    Trainer(pictures, tmp_path, **kw).run(progress=False)
    assert [json.loads(l)['it'] for l in open(tmp_path/'log.jsonl')]==[1, 2, 3, 4, 5]
    (tmp_path/'state.pt').unlink(); Trainer(pictures, tmp_path, **kw).run(progress=False)              # killed before its first state
    assert [json.loads(l)['it'] for l in open(tmp_path/'log.jsonl')]==[1, 2, 3, 4, 5]

def test_a_schedule_of_few_levels_is_validated_at_those_it_has(pictures):
    t = Trainer(pictures, None, ARCH, val=pictures[:2], device='cpu', schedule=Schedule.linear(130)); assert list(t.validate())==[20, 60, 120]

def test_log_is_json_lines_with_validation(pictures, tmp_path):
    Trainer(pictures, tmp_path, ARCH, val=pictures[:3], batch=2, iters=4, log_every=2, val_every=4, sample_every=4, device='cpu').run(progress=False)
    rows = [json.loads(l) for l in open(tmp_path/'log.jsonl')]
    assert [r['it'] for r in rows]==[2, 4] and set(rows[1]['val'])=={'20', '60', '120', '250', '450', '700'} and (tmp_path/'samples_000004.png').exists()

def test_learning_rate_shape(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, iters=1000, warmup=100, decay=.3, lr=1., device='cpu')
    assert t.lr_at(0)==.01 and t.lr_at(500)==1 and abs(t.lr_at(850)-.5) < 1e-9 and t.lr_at(1000)==0

def test_weights():
    s = Schedule.linear(); x = torch.zeros(2,3,4,4); t = torch.tensor([10, 800]); out = torch.ones_like(x)
    plain,capped = (diffusion_loss(s, out, x, x, t, torch.zeros_like(x), weights=w) for w in (None, loss_weights(s, 5., 0.)))
    assert torch.allclose(plain, torch.ones(2)) and abs(capped[0]-5/s.snr(10)) < 1e-6 and capped[1]==1
    w = loss_weights(s)
    assert abs(w[700]*s.snr(700)**.5-1) < 1e-9 and w[250]==1 and (w[:50] < 1).all()

def test_pictures_from_anything(tmp_path):
    import numpy as np
    for i in range(3): save_image(astronaut(40), tmp_path/f'{i}.png')
    assert load_pictures(tmp_path, 16).shape==(3,3,16,16)
    np.savez(tmp_path/'grey.npz', images=np.zeros((5,16,16), np.uint8)); assert load_pictures(tmp_path/'grey.npz', 16).shape==(5,3,16,16)
    (tmp_path/'junk.npz').write_text('x'); np.savez(tmp_path/'other.npz', a=1); np.savez(tmp_path/'none.npz', images=np.zeros((0,16,16), np.uint8))
    for n in ('junk', 'other', 'none'):
        with pytest.raises(ImageError, match=f'{n}.npz'): load_pictures(tmp_path/f'{n}.npz', 16)
    with pytest.raises(ImageError, match='expected'): load_pictures(tmp_path/'grey.npz', 32)

def test_small_arch_sizes():
    from gen2res.unet import UNet
    for side,patch in ((64,2), (128,4), (32,2)): assert UNet(**small_arch(side, patch))(torch.zeros(1,3,side,side), torch.zeros(1)).shape==(1,3,side,side)

def test_it_begins_with_what_fits(pictures, tiny):
    "Another side, folded: inner weights are the start's, those that read and write pixels and the solved part are not."
    arch = tiny.model.config | dict(patch=4, bypass=2)
    t,plain = (Trainer(pictures, None, arch, iters=1, batch=2, device='cpu', **kw) for kw in (dict(start=tiny), {}))
    mine,theirs,fresh = t.model.state_dict(),tiny.model.state_dict(),plain.model.state_dict()
    other = {k for k in mine if k not in theirs or mine[k].shape!=theirs[k].shape}
    assert {'input_blocks.0.0.weight', 'out.2.weight', 'bypass.mix'} <= other and all(mine[k].equal(fresh[k]) for k in other)
    assert all(mine[k].equal(theirs[k]) for k in mine if k not in other) and t.avg.state_dict()['time_embed.0.weight'].equal(theirs['time_embed.0.weight'])
    assert mine['bypass.mix'].any() and not t.model.bypass.maps.requires_grad
    with pytest.raises(ValueError, match='widths or depths differ'): Trainer(pictures, None, arch | dict(model_channels=64), start=tiny, device='cpu')

def test_a_learned_variance_on_another_device():
    "Noise levels stay with the processor; everything else may be elsewhere."
    from torch._subclasses.fake_tensor import FakeTensorMode
    from gen2res.train import _step_tables
    s = Schedule.linear(); _step_tables(s)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2,3,4,4, device='cuda'); t = torch.tensor([0, 5])
        assert diffusion_loss(s, torch.cat([x, x], 1), x, x, t, x, loss_weights(s)).device.type=='cuda'

def test_a_bypass_of_another_schedule(pictures):
    t = Trainer(pictures, None, ARCH | dict(patch=4, bypass=2), iters=1, batch=2, device='cpu', schedule=Schedule.linear(100)); t.step()
    assert len(t.model.bypass.mix)==100 and t.prior().model.config['T']==100
