"Checkpoints in, refusals out."
import json, pickle, struct
import pytest, torch, torch.nn.functional as F
from safetensors.torch import save_file
from gen2res.images import astronaut
from gen2res.prior import PRIORS, GaussianPrior, Prior, PriorError, best_device, cache_path, load_prior, save_prior, where_is
from gen2res.schedule import Schedule
from gen2res.unet import UNet

def same(a, b):
    x = torch.randn(1,3,16,16)
    return torch.equal(a(x, 37).eps, b(x, 37).eps) and torch.equal(a(x, 37).x0, b(x, 37).x0)

@pytest.mark.parametrize('target', ['folder', 'one.safetensors'])
def test_round_trip(tiny, tmp_path, target):
    tiny.card = {'made by': 'a test'}
    back = load_prior(save_prior(tiny, tmp_path/target), 'cpu')
    assert same(back, tiny) and (back.side, back.variance, back.name, back.card)==(16, 'learned', 'tiny', {'made by': 'a test'})

@pytest.mark.parametrize('schedule', [Schedule.cosine(), Schedule.linear(100), Schedule([.1,.2,.3])])
def test_schedules_survive(tiny, tmp_path, schedule):
    tiny.schedule = schedule
    back = load_prior(save_prior(tiny, tmp_path/'p'), 'cpu').schedule
    assert torch.equal(back.betas, schedule.betas)

@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s}, lambda s: {'params_ema': s, 'params': {}}, lambda s: {'model': s, 'step': 3}, lambda s: {f'module.{k}': v for k,v in s.items()}])
@pytest.mark.parametrize('suffix', ['.pt', '.pth'])
def test_published_wrappings(tiny, tmp_path, wrap, suffix):
    torch.save(wrap(tiny.model.state_dict()), tmp_path/f'a{suffix}')
    assert same(load_prior(tmp_path/f'a{suffix}', 'cpu', family=tiny.model.config), tiny)

def test_the_same_weights_with_other_heads_are_another_prior(tiny, tmp_path):
    torch.save(tiny.model.state_dict(), tmp_path/'a.pth')
    as_ = lambda **kw: load_prior(tmp_path/'a.pth', 'cpu', family=tiny.model.config | kw).fingerprint()
    heads = [dict(num_heads=h, num_head_channels=-1, use_new_attention_order=new) for h in (1, 2) for new in (False, True)]
    assert len({as_(**kw) for kw in heads})==4 and as_()==tiny.fingerprint()

def test_priors_that_come_along_keep_their_names(faces64):
    "Their records, caches and people's files know them by it."
    assert faces64.fingerprint()=='5af336043580' and load_prior('faces128', 'cpu').fingerprint()=='1eab9b4660f0'

def test_half_precision_and_plain_safetensors(tiny, tmp_path):
    save_file({k: v.half() for k,v in tiny.model.state_dict().items()}, tmp_path/'a.safetensors')
    back = load_prior(tmp_path/'a.safetensors', 'cpu', family=tiny.model.config)
    x = torch.randn(1,3,16,16)
    assert (back(x, 37).eps-tiny(x, 37).eps).abs().max() < .02 and back.model.out[2].weight.dtype==torch.float32

def test_fixed_variance_is_recognised(tmp_path):
    net = UNet(16, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=(1,), attention_pixels=[])
    torch.save(net.state_dict(), tmp_path/'a.pt')
    assert load_prior(tmp_path/'a.pt', 'cpu', family=net.config).variance=='fixed_small'

@pytest.mark.slow
def test_a_public_family_is_recognised_and_said(tmp_path):
    from gen2res.unet import FAMILIES
    state = {k: torch.zeros(v.shape, dtype=torch.float16) for k,v in UNet(**FAMILIES['adm-ffhq-256']).state_dict().items()}
    torch.save(state, tmp_path/'ffhq.pt')
    with pytest.warns(UserWarning, match="taken for 'adm-ffhq-256'"): prior = load_prior(tmp_path/'ffhq.pt', 'cpu')
    assert (prior.side, prior.variance, prior.model.input_blocks[9][1].heads)==(256, 'learned', 8)

class Hostile:
    def __reduce__(self): return (exec, ('raise SystemExit("ran code")',))

def bad_files(p, tiny):
    torch.save({'x': Hostile()}, p/'hostile.pt')
    (p/'pickle.pt').write_bytes(pickle.dumps(Hostile()))
    (p/'empty.pt').touch(); (p/'text.pth').write_text('hello'); (p/'list.pt').write_bytes(b'')
    torch.save([1,2], p/'list.pt')
    save_prior(tiny, p/'whole.safetensors')
    (p/'cut.safetensors').write_bytes((p/'whole.safetensors').read_bytes()[:-1000])
    (p/'header.safetensors').write_bytes(struct.pack('<Q', 10**12))
    save_prior(tiny, p/'config'); (p/'config'/'config.json').write_text('{')
    save_prior(tiny, p/'misfit')
    cfg = json.loads((p/'misfit'/'config.json').read_text()); cfg['arch']['model_channels'] = 64; (p/'misfit'/'config.json').write_text(json.dumps(cfg))
    (p/'nothing').mkdir()
    for name,cfg in {'list': [], 'bare': {'format': 'gen2res.prior.1'}, 'future': {'format': 'gen2res.prior.9'}, 'odd': dict(good(p), schedule={'name': 'sigmoid', 'T': 9}),
                     'odder': dict(good(p), arch={'image_size': 16, 'wings': 2})}.items():
        save_prior(tiny, p/name); (p/name/'config.json').write_text(json.dumps(cfg))
    (p/'latin').mkdir(); save_prior(tiny, p/'latin'); (p/'latin'/'config.json').write_bytes(b'{"name": "caf\xe9"}')

def good(p): return json.loads((p/'misfit'/'config.json').read_text())

@pytest.mark.parametrize('name', ['hostile.pt', 'pickle.pt', 'empty.pt', 'text.pth', 'list.pt', 'cut.safetensors', 'header.safetensors', 'config', 'misfit', 'nothing', 'missing.pt', 'missing.safetensors', 'list', 'bare', 'future', 'odd', 'odder', 'latin'])
def test_refused_in_one_line(tiny, tmp_path, name):
    bad_files(tmp_path, tiny)
    with pytest.raises(PriorError) as e: load_prior(tmp_path/name, 'cpu')
    assert name.split('.')[0] in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 500

def test_flipped_bytes_are_one_line(tiny, tmp_path):
    import random
    torch.save(tiny.model.state_dict(), tmp_path/'good.pt', _use_new_zipfile_serialization=False)
    data,rand = (tmp_path/'good.pt').read_bytes(),random.Random(0)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(3): broken[rand.randrange(4000)] = rand.randrange(256)
        (tmp_path/'broken.pt').write_bytes(broken)
        try: load_prior(tmp_path/'broken.pt', 'cpu', family=tiny.model.config)
        except PriorError as e: assert '\n' not in str(e)

def test_from_the_hub_cache(tiny, tmp_path, monkeypatch):
    "A repository that huggingface_hub has cached loads offline, through huggingface_hub."
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    repo = tmp_path/'models--someone--faces'; (repo/'refs').mkdir(parents=True); (repo/'refs'/'main').write_text('abc123')
    save_prior(tiny, repo/'snapshots'/'abc123')
    assert same(load_prior('someone/faces', 'cpu'), tiny)

@pytest.mark.parametrize('name', ['gen2res-ffhq-256', 'difface-ffhq-512', 'no-such', 'user/no-such-repo'])
def test_offline_is_one_line_and_quick(name, tmp_path, monkeypatch):
    import time
    monkeypatch.setenv('HF_HUB_OFFLINE', '1'); monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    start = time.time()
    with pytest.raises(PriorError) as e: load_prior(name)
    assert '\n' not in str(e.value) and time.time()-start < 5

def test_a_file_put_by_hand_is_found(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setitem(PRIORS, 'mine', PRIORS['gen2res-ffhq-256']._replace(family=tiny.model.config))
    assert where_is('mine') is None
    cache_path('mine').parent.mkdir(parents=True); torch.save(tiny.model.state_dict(), cache_path('mine'))
    assert same(load_prior('mine', 'cpu'), tiny) and where_is('mine')==cache_path('mine')

def test_unknown_variance(tiny):
    with pytest.raises(ValueError, match='variance'): Prior(tiny.model, tiny.schedule, 16, 'guessed')

def test_gaussian_prior_is_consistent():
    g,x = GaussianPrior(.1, .2),torch.randn(1,3,4,4)
    p = g(x, 400)
    assert torch.allclose(g.schedule.diffuse(p.x0, 400, p.eps), x, atol=1e-5)

def test_the_larger_prior_of_a_checkout():
    "Packed, its solved part whole; it names more noise than Wiener's filter does."
    p = load_prior('faces128', 'cpu'); x0,b = astronaut(128),p.model.bypass
    assert p.side==128 and p.model.config['patch']==4 and all(k in p.card for k in ('data', 'iterations', 'validation')) and p.card['start']=='faces64'
    for t in (20, 120, 450):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(t)); x_t = p.schedule.diffuse(x0, t, noise)
        alone = F.pixel_shuffle(b(F.pixel_unshuffle(x_t, 4), torch.tensor([t])), 4)
        assert (p(x_t, t).eps-noise).pow(2).mean() < .9*(alone-noise).pow(2).mean() < .4

def test_shipped_prior(faces64):
    assert faces64.side==64 and not any(p.requires_grad for p in faces64.model.parameters()) and not faces64.model.training
    assert all(k in faces64.card for k in ('data', 'iterations', 'validation'))

def test_each_of_a_team_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True); monkeypatch.setattr('gen2res.prior._there', torch.device)
    assert str(best_device())=='cuda'
    monkeypatch.setenv('LOCAL_RANK', '1'); assert str(best_device())=='cuda:1'==str(best_device('cuda')) and str(best_device('cuda:0'))=='cuda:0' and str(best_device('cpu'))=='cpu'
