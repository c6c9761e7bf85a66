"The arithmetic of public ADM/IDDPM code, number by number."
import hashlib, json, zlib
from functools import partial
from types import SimpleNamespace
import numpy as np, pytest, torch
from gen2res.constraints import Guide
from gen2res.prior import Prior, guess_family
from gen2res.sample import Step, ddim, ddpm, denoise, step_variance
from gen2res.schedule import Schedule
from gen2res.train import diffusion_loss, variational_bits
from gen2res.unet import FAMILIES, UNet, timestep_embedding
from conftest import DATA

def npz(name): return {k: torch.from_numpy(v) if v.dtype.kind in 'fiu' else v for k,v in np.load(DATA/f'{name}.npz').items()}
def schedule(name): return getattr(Schedule, name)()
def close(a, b, tol):
    worst = (torch.as_tensor(a).double()-torch.as_tensor(b).double()).abs().max().item()
    if not worst <= tol: pytest.fail(f'off by {worst:.3g}, allowed {float(tol):.3g}', pytrace=False)

def seeded_weight(key, shape):
    "The weight fill of the reference numbers."
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape)>=2: return r/np.sqrt(np.prod(shape[1:]))
    return 1+.1*r if key.endswith('weight') else .1*r

def e1(fill=True):
    arch = json.loads((DATA/'e1.json').read_text())
    net = UNet(**arch['constructor'], attention_pixels=arch['attention_pixels']).eval()
    net.load_state_dict({k: torch.from_numpy(seeded_weight(k, s)).float() for k,s,_ in arch['state_dict']}) if fill else None
    return net,arch

# -- network ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', list(FAMILIES))
def test_published_keys_shapes_and_heads(name):
    want = json.loads((DATA/'families.json').read_text())[name]
    with torch.device('meta'): net = UNet(**FAMILIES[name])
    state = net.state_dict()
    lines = '\n'.join(f'{k} {list(v.shape)}' for k,v in state.items())
    assert sum(p.numel() for p in net.parameters())==want['n_params'] and len(state)==want['n_tensors']
    assert hashlib.sha256(lines.encode()).hexdigest()==want['keys_and_shapes_sha256']
    assert {k: m.heads for k,m in net.named_modules() if hasattr(m, 'heads')}==want['heads']
    assert guess_family(state)==name

def test_e1_keys_and_zero_init():
    net,arch = e1(fill=False)
    assert [[k, list(v.shape)] for k,v in net.state_dict().items()]==[row[:2] for row in arch['state_dict']]
    zeros = [k for k,v in net.state_dict().items() if v.abs().max()==0 and not (k.endswith('bias') and 'norm' in k)]
    assert set(arch['zero_init_keys']) <= set(zeros)

def test_e1_outputs():
    (net,_),u = e1(),npz('unet_e1')
    with torch.no_grad():
        for t in (0, 37, 999): close(net(u['x'], torch.full((2,), t)), u[f'out_t{t}'], 2e-5)
        close(net(u['x'], torch.tensor([37, 999])), u['out_mixed'], 2e-5)
        close(net(u['x'], torch.tensor([37.25, 599.5])), u['out_frac'], 2e-5)
        close(net(u['x_rect'], torch.tensor([37])), u['out_rect_t37'], 2e-5)

def test_e1_gradient():
    (net,_),u = e1(),npz('unet_e1')
    x,weight = u['x'].clone().requires_grad_(),np.random.RandomState(int(u['grad_weight_seed'])).standard_normal((2,6,32,32))
    (net(x, torch.full((2,), 37))*torch.from_numpy(weight).float()).sum().backward()
    close(x.grad, u['grad_x_t37'], 2e-5*u['grad_x_t37'].abs().max())

def test_e1_zero_init():
    net,arch = e1()
    with torch.no_grad(): [net.get_parameter(k).zero_() for k in arch['zero_init_keys'] if not k.startswith('out.')]
    close(net(npz('unet_e1')['x'], torch.full((2,), 37)).detach(), npz('unet_e1')['out_zeroinit_t37'], 2e-5)

def test_timestep_embedding():
    e = npz('timestep_embedding')
    for dim,key in ((32,'emb32'), (128,'emb128'), (33,'emb33_odd')): close(timestep_embedding(e['t'], dim), e[key], 1e-4)     # one float32 ulp of a frequency, times t = 999
    close(timestep_embedding(e['t_frac'], 32), e['emb32_frac'], 1e-4)

# -- schedule --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_schedule_tables(name):
    s,ref = schedule(name),npz(f'schedule_{name}')
    close(s.betas, ref['betas'], 1e-15); close(s.abar, ref['alphas_cumprod'], 1e-14)
    post = torch.tensor([s.posterior(t, t-1) for t in range(1000)], dtype=torch.float64)
    close(post[:,0], ref['posterior_mean_coef1'], 1e-12); close(post[:,1], ref['posterior_mean_coef2'], 1e-12)
    close(post[:,2], ref['posterior_variance'], 1e-14); close(post[:,3], ref['betas'], 1e-14)
    for t in ref['q_t'].tolist(): close(s.diffuse(ref['q_x0'], t, ref['q_noise']), ref[f'q_xt_t{t}'], 2e-6)

@pytest.mark.parametrize('name', ['linear', 'cosine'])
@pytest.mark.parametrize('spec', ['250', 'ddim25', '25', '100', 'ddim50', '10,15,20'])
def test_respacing(name, spec):
    s,ref = schedule(name),npz('respacing')
    ts = s.timesteps(1000, spec)
    assert ts[::-1]==ref[f'{name}_{spec}_steps'].tolist()
    post = [s.posterior(t, u)for t,u in zip(ts, ts[1:]+[-1])][::-1]
    close(torch.tensor([p[3] for p in post], dtype=torch.float64), ref[f'{name}_{spec}_betas'], 1e-13)
    var = [p[2] for p in post]; var[0] = var[1]
    close(torch.tensor(var, dtype=torch.float64).log(), ref[f'{name}_{spec}_posterior_log_variance_clipped'], 1e-9)

# -- steps -----------------------------------------------------------------------------------------------------
class Told:
    "A prior that gives fixed answers."
    def __init__(self, s, eps, v, variance): self.schedule,self.eps,self.v,self.variance,self.seen = s,eps,v,variance,[]
    def __call__(self, x, t):
        self.seen.append(t)
        return self.schedule.predict_x0(x, t, self.eps),self.eps,self.v if self.variance=='learned' else None

def keys():
    ref = np.load(DATA/'steps.npz')
    return sorted({k.rsplit('|', 1)[0] for k in ref.files if k.count('|')==5})

@pytest.mark.parametrize('key', keys())
def test_steps(key):
    ref = npz('steps')
    name,spacing,variance,i,clip,*_ = key.split('|')
    i,clip = int(i[1:]),clip=='clip1'
    s = schedule('linear' if name=='difface' else name)
    ts = s.timesteps(1000, None if spacing=='full' else spacing)[::-1]
    prior = Told(s, ref['eps'], ref['v'], {'fixedlarge':'fixed_large', 'fixedsmall':'fixed_small'}.get(variance, variance))
    before = SimpleNamespace(t=ts[i+1]) if i+1<len(ts) else None
    def at():
        st = Step(prior, ref['x'], ts[i], ts[i-1] if i else -1, None, before, clip); st.predict()
        return st
    def want(what): return ref.get(f'{key}|{what}')
    tol = 1e-4 if name=='cosine' and ts[i]==999 else 2e-5       # abar is 2e-9 there, and x0 is divided by its root
    if (m := want('mean')) is not None:
        st = at(); ddpm(st)
        close(st.x0/max(1, m.abs().max()), want('pred_xstart')/max(1, m.abs().max()), tol*max(1, want('pred_xstart').abs().max()))
        close(st.mean, m, tol*max(1, m.abs().max()))
        close(torch.as_tensor(st.var).log().expand(m.shape), want('log_variance').expand(m.shape), 1e-5)
        noise = 0 if i==0 else torch.as_tensor(st.var)**.5*ref['noise']
        close(st.mean + noise, want('sample'), tol*max(1, m.abs().max()))
        assert prior.seen[-1]==ref[f'{name}|{spacing}|t{i}|model_t'].item()
    for eta in (0, 1):
        if (sample := want(f'ddim_eta{eta}')) is None: continue
        st = at(); ddim(st, eta=float(eta), raw_eps=name=='difface')
        # The reference takes d = 1 - abar_prev - sigma^2 in float32: near t = 0 that alone moves sqrt(d), which multiplies eps.
        a,d = s.a(st.t),max(1-s.a(st.s)-float(st.var), 0.)
        rounding = ((d+1.2e-7)**.5 - d**.5)*((st.x-a**.5*st.x0)/(1-a)**.5).abs().max() if i else 0.
        close(st.mean + st.var**.5*ref['noise']*(i>0), sample, tol*max(1, sample.abs().max()) + rounding)

# -- guidance --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('t', [0, 99, 599])
@pytest.mark.parametrize('clip', [0, 1])
def test_skip_guidance(t, clip):
    "In float64: x0 at t = 599 is eps times 6, and there float32 kernels of two processors are 1.5e-5 apart, the reference 9e-6 from the truth."
    ref,(net,_) = {k: v.double() if v.is_floating_point() else v for k,v in npz('guidance_e1').items()},e1()
    prior = Prior(net.double(), Schedule.linear(), 32, 'learned')
    g = Guide(ref['y0'], scale=float(ref['scale']))
    seen = []
    ts = list(range(t, -1, -1))
    def first(st): seen.append(st); raise StopIteration
    for guided,key in ((True, 'x_prev_guided'), (False, 'x_prev_unguided')):
        try: denoise(prior, ref[f't{t}|x_t'], ts, [g] if guided else [], rng=lambda x: ref['step_noise'], clip=bool(clip), callback=first)
        except StopIteration: pass
        want = ref[f't{t}|clip{clip}|{key}']
        close(seen[-1].x_next, want, 1e-5*max(1, want.abs().max()))
    want = ref[f't{t}|clip{clip}|pred_xstart']
    close(seen[-1].x0, want, 1e-5*max(1, want.abs().max()))

# -- losses ----------------------------------------------------------------------------------------------------
def loss_keys():
    return sorted({k.rsplit('|', 1)[0] for k in np.load(DATA/'losses.npz').files if k.count('|')==4 and '250steps' not in k and '|KL' not in k and '_KL' not in k})

@pytest.mark.parametrize('key', loss_keys())
def test_training_losses(key):
    ref = npz('losses')
    name,kind,variance,t,_ = (key+'|').split('|')
    s,t = schedule(name),torch.tensor([int(i) for i in t[1:].split(',')])
    x_t = s.diffuse(ref['x0'], t, ref['noise'])
    out = (torch.cat([ref['eps'], ref['v']], 1) if variance=='learned' else ref['eps']).requires_grad_()
    loss = diffusion_loss(s, out, ref['x0'], x_t, t, ref['noise'], vb_weight=1e-3 if kind=='RESCALED_MSE' else 1/s.T)
    assert torch.allclose(loss, ref[f'{key}|loss'], rtol=2e-4, atol=1e-6)
    if variance=='learned' and kind=='MSE':
        vb = variational_bits(s, ref['x0'], x_t, t, *out.detach().chunk(2, 1))
        assert torch.allclose(vb, ref[f'{key}|vb'], rtol=2e-4, atol=1e-6)
    if f'{key}|grad_output' in ref and kind!='KL':
        loss.mean().backward(); want = ref[f'{key}|grad_output']
        ratio = (out.grad*want).sum()/(want*want).sum()            # the reference may have summed over the batch
        assert min(abs(ratio-1), abs(ratio-.5)) < 1e-3
        assert (out.grad/ratio-want).abs().max() < 1e-3*want.abs().max()

def test_the_loss_on_a_respaced_schedule():
    "The steps that are left are a schedule of their own, whose bound has as many terms."
    ref,key,full = npz('losses'),'linear|RESCALED_MSE|250steps|t9,200',Schedule.linear()
    a = full.abar[full.timesteps(1000, 250)[::-1]]; s = Schedule(1-a/torch.cat([a.new_ones(1), a[:-1]])); t = torch.tensor([9, 200])
    x_t = s.diffuse(ref['x0'], t, ref['noise'])
    assert torch.allclose(variational_bits(s, ref['x0'], x_t, t, ref['eps'], ref['v'])*s.T/1000, ref[f'{key}|vb'], rtol=2e-4, atol=1e-6)
    assert torch.allclose(diffusion_loss(s, torch.cat([ref['eps'], ref['v']], 1), ref['x0'], x_t, t, ref['noise']), ref[f'{key}|loss'], rtol=2e-4, atol=1e-6)

def kl_keys(): return sorted({k.rsplit('|', 1)[0] for k in np.load(DATA/'losses.npz').files if 'KL|' in k and '250steps' not in k})

@pytest.mark.parametrize('key', kl_keys())
def test_the_bound_alone(key):
    "The losses that are nothing but the bound (no prior here is trained on them)."
    ref = npz('losses'); name,kind,_,t = key.split('|'); s,t = schedule(name),torch.tensor([int(i) for i in t[1:].split(',')])
    vb = variational_bits(s, ref['x0'], s.diffuse(ref['x0'], t, ref['noise']), t, ref['eps'], ref['v'])
    assert torch.allclose(vb*(s.T if kind=='RESCALED_KL' else 1), ref[f'{key}|loss'], rtol=2e-4, atol=1e-6)
