"Public priors: every family and format with weights from a seed, folders of diffusers, priors of codes, downloads that break off, the hub."
import contextlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest, torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from gen2res.album import generative_album
from gen2res.constraints import LowFreq
from gen2res.images import astronaut, resize
from gen2res.prior import (PRIORS, DiffusersUNet, Prior, PriorError, build_prior, cache_path, diffusers_schedule, fetch, foreign_config, guess_family, load_prior,
                           save_prior, sha256_of, where_is)
from gen2res.pseudo import pseudo_targets
from gen2res.restore import ALBUMS, RECIPES, Restorer, restore
from gen2res.sample import generate
from gen2res.schedule import Schedule
from gen2res.tune import load_person, push_to_hub, save_person, tune
from gen2res.unet import FAMILIES, UNet

y = resize(astronaut(64), 16)
KW = dict(iters=3, batch=2, lr=1e-3)
def eps(p, t=37): return p(torch.randn(1, *p.shape, generator=torch.Generator().manual_seed(0)), t).eps

# -- the four families ------------------------------------------------------------------------------------------------------------

HEADS = {'gen2res-256': {1}, 'adm-ffhq-256': {8}, 'difface-512': {4, 8}, 'gen2res-512': {8, 16}}

@pytest.mark.parametrize('family', FAMILIES)
def test_a_family_is_recognised_and_complete(family):
    "Its shapes alone: on the meta device even the largest costs nothing."
    with torch.device('meta'): state = UNet(**FAMILIES[family]).state_dict()
    assert guess_family(state)==family
    with pytest.warns(UserWarning, match='taken for'): cfg = foreign_config(state, where=f'{family}.pt')
    assert (cfg['side'], cfg['variance'], cfg['schedule'])==(int(family[-3:]), 'learned', {'name': 'linear', 'T': 1000})
    with torch.device('meta'): net = UNet(**cfg['arch'])
    assert {m.heads for m in net.modules() if hasattr(m, 'heads')}==HEADS[family]

@pytest.mark.parametrize('name,family', [(n, e.family) for n,e in PRIORS.items() if e.family in FAMILIES])
def test_a_named_prior_has_its_familys_number_of_heads(name, family, monkeypatch, tmp_path):
    "The file of the published name, put where it belongs: a small network of the same make, wrapped, prefixed and in half precision."
    arch = FAMILIES[family] | dict(image_size=32, model_channels=32, channel_mult=[1,2], num_res_blocks=1, attention_pixels=[16])
    torch.manual_seed(0); net = UNet(**arch).eval(); [torch.nn.init.normal_(p, std=.02) for p in net.parameters() if p.abs().max()==0]
    monkeypatch.setenv('TORCH_HOME', str(tmp_path)); monkeypatch.setitem(FAMILIES, family, arch)
    cache_path(name).parent.mkdir(parents=True)
    torch.save({'state_dict': {f'module.{k}': v.half() for k,v in net.state_dict().items()}, 'step': 3}, cache_path(name))
    prior = load_prior(name, 'cpu')
    assert {m.heads for m in prior.model.modules() if hasattr(m, 'heads')}=={m.heads for m in net.modules() if hasattr(m, 'heads')}
    assert prior.name==name and prior.variance=='learned' and prior.schedule.name=='linear' and where_is(name)==cache_path(name)
    with torch.no_grad(): assert (eps(prior)-net(torch.randn(1,3,32,32, generator=torch.Generator().manual_seed(0)), torch.tensor([37])).chunk(2, 1)[0]).abs().max() < .01
    assert len(prior.schedule.timesteps(200, 25))==25 and restore(torch.zeros(1,3,32,32), prior, 20, 4).isfinite().all()

# -- diffusers --------------------------------------------------------------------------------------------------------------------

NOISE = {'_class_name': 'DDPMScheduler', '_diffusers_version': '0.1.1', 'beta_end': .02, 'beta_schedule': 'linear', 'beta_start': 1e-4, 'clip_sample': True,
         'num_train_timesteps': 1000, 'trained_betas': None, 'variance_type': 'fixed_small'}
NET = {'_class_name': 'UNet2DModel', '_diffusers_version': '0.0.4', 'act_fn': 'silu', 'attention_head_dim': None, 'block_out_channels': [32,64], 'center_input_sample': False,
       'down_block_types': ['DownBlock2D', 'AttnDownBlock2D'], 'downsample_padding': 0, 'flip_sin_to_cos': False, 'freq_shift': 1, 'in_channels': 3, 'layers_per_block': 1,
       'mid_block_scale_factor': 1, 'norm_eps': 1e-6, 'norm_num_groups': 32, 'out_channels': 3, 'sample_size': 16, 'time_embedding_type': 'positional',
       'up_block_types': ['AttnUpBlock2D', 'UpBlock2D']}

def network(**kw):
    pytest.importorskip('diffusers')
    torch.manual_seed(0)
    return DiffusersUNet(**(NET | kw)).eval()

OLD = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'} # names of attention when Google's priors were published
def old_keys(state): return {re.sub('|'.join(map(re.escape, OLD)), lambda m: OLD[m[0]], k): v for k,v in state.items()}

def folder_of(net, at, layout='newer', safe=True, noise=NOISE, old=False, half=False):
    "The files as the hub has them, written by hand."
    unet,scheduler = (at/'unet', at/'scheduler') if layout=='newer' else (at, at)
    for d in (unet, scheduler): d.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if half else v).contiguous() for k,v in (old_keys if old else dict)(net.net.state_dict()).items()}
    if safe: save_file(state, unet/'diffusion_pytorch_model.safetensors', {'format': 'pt'})
    else: torch.save(state, unet/'diffusion_pytorch_model.bin')
    (unet/'config.json').write_text(json.dumps({**NET, **{k: v for k,v in net.config.items() if k in NET}}))
    (scheduler/'scheduler_config.json').write_text(json.dumps(noise))
    (at/'model_index.json').write_text(json.dumps({'_class_name': 'DDPMPipeline', 'scheduler': ['diffusers', 'DDPMScheduler'], 'unet': ['diffusers', 'UNet2DModel']}))
    return at

@pytest.mark.parametrize('kw', [dict(), dict(layout='older'), dict(layout='older', safe=False, old=True), dict(safe=False), dict(old=True)], ids=str)
def test_a_folder_of_diffusers(tmp_path, kw):
    net = network()
    prior = load_prior(folder_of(net, tmp_path/'cats', **kw), 'cpu')
    assert (prior.name, prior.side, prior.variance, prior.schedule.name, prior.card)==('cats', 16, 'fixed_small', 'linear', {'scheduler': NOISE})
    with torch.no_grad(): assert torch.equal(eps(prior), net(torch.randn(1,3,16,16, generator=torch.Generator().manual_seed(0)), torch.tensor([37])))
    assert not prior.model.training and not any(p.requires_grad for p in prior.model.parameters()) and str(tmp_path) not in json.dumps(prior.model.config)

def test_half_precision_of_diffusers(tmp_path):
    net = network(); prior = load_prior(folder_of(net, tmp_path/'p', half=True), 'cpu')
    assert {p.dtype for p in prior.model.parameters()}=={torch.float32} and 0 < (eps(prior)-eps(Prior(net, Schedule.linear(), 16))).abs().max() < .02

def test_the_published_ones_have_the_published_size():
    "455 MB on the hub."
    widths,down,up = [128,128,256,256,512,512],['DownBlock2D']*4+['AttnDownBlock2D', 'DownBlock2D'],['UpBlock2D', 'AttnUpBlock2D']+['UpBlock2D']*4
    with torch.device('meta'): net = network(block_out_channels=widths, down_block_types=down, up_block_types=up, layers_per_block=2, sample_size=256)
    assert round(sum(p.numel() for p in net.parameters())*4/1e6)==455==PRIORS['google/ddpm-celebahq-256'].size_mb

@pytest.mark.parametrize('noise,betas', [
    (dict(), Schedule.linear().betas), (dict(beta_schedule='squaredcos_cap_v2'), Schedule.cosine().betas), (dict(trained_betas=[.1,.2,.3], num_train_timesteps=3), torch.tensor([.1,.2,.3])),
    (dict(beta_schedule='scaled_linear', beta_start=.0015, beta_end=.0195), torch.linspace(.0015**.5, .0195**.5, 1000)**2)], ids=['linear', 'cosine', 'trained', 'scaled'])
def test_schedules_of_diffusers(noise, betas):
    pytest.importorskip('diffusers')
    schedule,_ = diffusers_schedule(NOISE | noise)
    assert schedule.betas.dtype==torch.float64 and torch.allclose(schedule.betas, betas.double(), rtol=1e-5)

@pytest.mark.parametrize('variance,ours', [('fixed_small_log', 'fixed_small'), ('fixed_large', 'fixed_large'), (None, 'fixed_small'), ('learned_range', 'learned')])
def test_variances_of_diffusers(tmp_path, variance, ours):
    prior = load_prior(folder_of(network(out_channels=6 if ours=='learned' else 3), tmp_path/'p', noise={**NOISE, 'variance_type': variance}), 'cpu')
    assert prior.variance==ours and generate(prior, 1, 2).shape==(1,3,16,16)

@pytest.mark.parametrize('spoil,says', [
    (lambda d: (d/'unet/config.json').write_text('{"_class_name": "UNet2DConditionModel"}'), 'UNet2DConditionModel; only a UNet2DModel'),
    (lambda d: (d/'unet/config.json').write_text('{'), 'not readable as JSON'),
    (lambda d: (d/'unet/config.json').write_text(json.dumps({**NET, 'num_class_embeds': 10})), 'told a class'),
    (lambda d: (d/'unet/config.json').write_text(json.dumps({**NET, 'sample_size': [16, 32]})), 'sample_size'),
    (lambda d: (d/'unet/config.json').write_text(json.dumps({**NET, 'layers_per_block': 2})), 'do not fit|no readable'),
    (lambda d: (d/'scheduler/scheduler_config.json').unlink(), 'no scheduler_config.json'),
    (lambda d: (d/'scheduler/scheduler_config.json').write_text(json.dumps({**NOISE, 'prediction_type': 'v_prediction'})), "'v_prediction'; only priors that predict the noise"),
    (lambda d: (d/'scheduler/scheduler_config.json').write_text(json.dumps({**NOISE, 'variance_type': 'learned'})), 'unknown variance_type'),
    (lambda d: (d/'scheduler/scheduler_config.json').write_text(json.dumps({**NOISE, 'variance_type': 'learned_range'})), 'wants a learned variance'),
    (lambda d: (d/'scheduler/scheduler_config.json').write_text(json.dumps({**NOISE, 'beta_schedule': 'wild'})), 'its schedule cannot be used'),
    (lambda d: (d/'scheduler/scheduler_config.json').write_text(json.dumps({**NOISE, 'beta_end': 2})), 'betas must lie in'),
    (lambda d: (d/'unet/diffusion_pytorch_model.safetensors').unlink(), 'no readable UNet2DModel'),
    (lambda d: (d/'unet/diffusion_pytorch_model.safetensors').write_bytes(b'0'*99), 'no readable UNet2DModel')])
def test_what_of_diffusers_is_refused(tmp_path, spoil, says):
    spoil(folder_of(network(), tmp_path/'p'))
    with pytest.raises(PriorError, match=says) as e: load_prior(tmp_path/'p', 'cpu')
    assert '\n' not in str(e.value) and 'p' in str(e.value)

def test_a_pickle_of_diffusers_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self): return (exec, ('raise SystemExit("ran code")',))
    folder_of(network(), tmp_path/'p', safe=False); torch.save({'conv_in.weight': Hostile()}, tmp_path/'p/unet/diffusion_pytorch_model.bin')
    with pytest.raises(PriorError, match='no readable UNet2DModel'): load_prior(tmp_path/'p', 'cpu')

def test_without_diffusers(tmp_path, monkeypatch):
    ours = save_prior(Prior(network(), Schedule.linear(), 16), tmp_path/'ours'); theirs = folder_of(network(), tmp_path/'theirs')
    monkeypatch.setitem(__import__('sys').modules, 'diffusers', None)
    for folder in (ours, theirs):
        with pytest.raises(PriorError, match=rf'{folder}.*: is made with diffusers.*pip install "gen2res\[diffusers\]"'): load_prior(folder, 'cpu')

@pytest.fixture
def theirs(tmp_path): return load_prior(folder_of(network(), tmp_path/'theirs'), 'cpu')

@pytest.mark.parametrize('target', ['folder', 'one.safetensors'])
def test_saved_as_ours(theirs, tmp_path, target):
    back = load_prior(save_prior(theirs, tmp_path/target), 'cpu')
    assert back.fingerprint()==theirs.fingerprint() and torch.equal(eps(back), eps(theirs)) and back.card==theirs.card and back.name=='theirs'

def test_it_restores_and_draws(theirs, monkeypatch):
    monkeypatch.setattr('gen2res.prior.quick_bf16', lambda device: True)                # emulated, if need be
    for name in ('plain', 'ilvr', 'dda'): assert Restorer(theirs, name, K=6)(y).abs().max() <= 1
    assert generative_album(y, theirs, 2, K=4, every=2).shape==(2,3,16,16)
    whole = eps(theirs); theirs.bf16 = True
    assert 0 < (eps(theirs)-whole).abs().max() < .1 and eps(theirs).dtype==torch.float32

@pytest.mark.parametrize('lora', [None, 2])
def test_it_is_tuned(theirs, tmp_path, lora):
    before = theirs.fingerprint()
    tuned = tune(theirs, torch.cat([y, y.flip(-1)]), lora=lora, **KW)
    assert theirs.fingerprint()==before!=tuned.fingerprint() and tuned.model.state_dict().keys()==theirs.model.state_dict().keys()
    person = load_person(save_person(tuned, tmp_path/'p.safetensors'), theirs)
    assert (eps(person)-eps(tuned)).abs().max() < .01 and (eps(person)-eps(theirs)).abs().max() > 1e-4
    if lora: assert any('attentions' in k and 'to_q' in k for k in tuned.adapter[0]) and not any('time_emb' in k for k in tuned.adapter[0])

# -- codes ------------------------------------------------------------------------------------------------------------------------

def latent_folder(at, kind='AutoencoderKL', channels=4, **kw):
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(1)
    ae = getattr(diffusers, kind)(block_out_channels=(32,64), down_block_types=('DownEncoderBlock2D',)*2, up_block_types=('UpDecoderBlock2D',)*2, latent_channels=channels, sample_size=32, **kw)
    folder_of(network(in_channels=channels, out_channels=channels), at, noise=NOISE | dict(beta_schedule='scaled_linear', clip_sample=False))
    ae.eval().save_pretrained(at/('vae' if kind=='AutoencoderKL' else 'vqvae'))
    return ae

y32 = resize(astronaut(64), 32)

@pytest.mark.parametrize('kind,channels,scaling', [('AutoencoderKL', 4, .18215), ('VQModel', 3, 1.)])
def test_a_prior_of_codes(tmp_path, kind, channels, scaling):
    ae = latent_folder(tmp_path/'p', kind, channels)
    at = next((tmp_path/'p').glob('v*/config.json')); cfg = json.loads(at.read_text()); cfg.pop('scaling_factor'); at.write_text(json.dumps(cfg))   # as the first ones were published
    prior = load_prior(tmp_path/'p', 'cpu')
    with torch.no_grad():
        out = ae.encode(y32); z = scaling*(out.latent_dist.mode() if kind=='AutoencoderKL' else out.latents)
        assert torch.allclose(prior.encode(y32), z, atol=1e-6) and torch.allclose(prior.decode(z), ae.decode(z/scaling).sample.clamp(-1, 1), atol=1e-5)
    assert prior.side==32 and prior.shape==(channels,16,16) and prior.latent and generate(prior, 2, 2).shape==(2,3,32,32)
    back = load_prior(save_prior(prior, tmp_path/'ours'), 'cpu')
    assert back.fingerprint()==prior.fingerprint()!=prior.codes.fingerprint() and torch.equal(restore(y32, back, 3), restore(y32, prior, 3))

@pytest.mark.parametrize('name', [n for n in RECIPES if n not in ALBUMS])
def test_every_recipe_runs_on_codes(tmp_path, name):
    latent_folder(tmp_path/'p'); prior = load_prior(tmp_path/'p', 'cpu')
    seen = []
    x = Restorer(prior, name, K=45, steps=None if name=='dr2' else 4)(y32, callback=lambda st: seen.append(st.x_next.shape))
    assert x.shape==y32.shape and x.isfinite().all() and x.abs().max() <= 1 and all(s==(1,4,16,16) for s in seen)

def test_an_album_of_a_prior_of_codes_and_what_it_refuses(tmp_path):
    latent_folder(tmp_path/'p'); prior = load_prior(tmp_path/'p', 'cpu')
    assert generative_album(y32, prior, 2, K=4, every=2).shape==(2,3,32,32)
    assert torch.equal(pseudo_targets(y32, prior, K=45, L=10, N=4, steps=4, seeds=3), restore(y32, prior, 45, 4, [LowFreq(prior.encode(y32), 4, lo=10)], seeds=3))
    with pytest.raises(ValueError, match='prior of codes'): tune(prior, y32, **KW)
    with pytest.raises(PriorError, match='give a folder'): save_prior(prior, tmp_path/'one.safetensors')
    cfg = json.loads((tmp_path/'p/vae/config.json').read_text())
    for bad,says in ((dict(_class_name='AutoencoderTiny'), 'AutoencoderTiny'), (dict(shift_factor=.1), 'shifted')):
        (tmp_path/'p/vae/config.json').write_text(json.dumps(cfg | bad))
        with pytest.raises(PriorError, match=says): load_prior(tmp_path/'p', 'cpu')

def test_codes_of_another_autoencoder(tmp_path):
    latent_folder(tmp_path/'p'); latent_folder(tmp_path/'q', 'VQModel', 3)
    (tmp_path/'p/vae').rename(tmp_path/'kept'); (tmp_path/'q/vqvae').rename(tmp_path/'p/vqvae')
    with pytest.raises(PriorError, match='wants 4 channels'): load_prior(tmp_path/'p', 'cpu')

# -- downloads --------------------------------------------------------------------------------------------------------------------

class Server(ThreadingHTTPServer):
    "A file that breaks off after `cut` bytes, as often as `breaks`; `ranges` are the starts that were asked for."
    def __init__(self, data, cut=None, breaks=0, resumes=True):
        self.data,self.cut,self.breaks,self.resumes,self.ranges = data,cut,breaks,resumes,[]
        super().__init__(('127.0.0.1', 0), Handler)
    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}/a.pth'

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        s = self.server; start = int((self.headers.get('Range') or 'bytes=0-')[6:].split('-')[0])
        s.ranges.append(start)
        if start and not s.resumes: start = 0
        if start>=len(s.data): return self.send_error(416)
        self.send_response(206 if start else 200)
        if start: self.send_header('Content-Range', f'bytes {start}-{len(s.data)-1}/{len(s.data)}')
        self.send_header('Content-Length', str(len(s.data)-start)); self.end_headers()
        broken = s.breaks>0; s.breaks -= broken
        self.wfile.write(s.data[start:start+s.cut] if broken else s.data[start:])
        self.wfile.flush(); self.close_connection = True
    def log_message(self, *a): pass

@pytest.fixture
def serve(monkeypatch):
    "serve(data, ...) -> a running Server, which is shut down in the end; the network is allowed, and a broken connection is not waited for."
    monkeypatch.setenv('HF_HUB_OFFLINE', '0'); monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.file_download.time.sleep', lambda s: None); monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 100_000)
    with contextlib.ExitStack() as stack:
        def start(*args, **kw):
            s = stack.enter_context(Server(*args, **kw))
            t = threading.Thread(target=s.serve_forever, args=(.02,)); t.start()
            stack.callback(t.join); stack.callback(s.shutdown)
            return s
        yield start

DATA = bytes(range(256))*12_000 # 3.07 MB

def tries(*args, n=5):
    "Newer versions of huggingface_hub mend a short break within one call, older ones leave that to the next."
    for _ in range(n):
        with contextlib.suppress(OSError): return fetch(*args)

def test_a_short_break_costs_nothing_twice(serve, tmp_path):
    s = serve(DATA, cut=1_000_000, breaks=2)
    assert tries(s.url, tmp_path/'a.pth', 3).read_bytes()==DATA and s.ranges[0]==0 < s.ranges[1] < s.ranges[2] and len(s.ranges)==3

def test_a_long_break_is_continued_by_the_next_call(serve, tmp_path):
    s = serve(DATA, cut=0, breaks=10**6)
    (tmp_path/'a.pth.part').write_bytes(DATA[:1_000_000])                                         # what a killed process left
    with pytest.raises(OSError, match='download failed.*1 MB are kept') as e: fetch(s.url, tmp_path/'a.pth', 3)
    assert '\n' not in str(e.value) and (tmp_path/'a.pth.part').stat().st_size==1_000_000 and not (tmp_path/'a.pth').exists()
    s.breaks = 0; s.ranges.clear()
    assert fetch(s.url, tmp_path/'a.pth', 3).read_bytes()==DATA and s.ranges==[1_000_000] and not (tmp_path/'a.pth.part').exists()

def test_a_server_that_cannot_resume_starts_anew(serve, tmp_path):
    s = serve(DATA, resumes=False)
    (tmp_path/'a.pth.part').write_bytes(b'x'*1000)
    assert fetch(s.url, tmp_path/'a.pth', 3).read_bytes()==DATA and s.ranges==[1000]

def test_what_is_not_as_published_is_thrown_away(serve, tmp_path):
    s = serve(DATA); (tmp_path/'good').write_bytes(DATA); right = sha256_of(tmp_path/'good')
    with pytest.raises(OSError, match='3 MB came, not 500'): fetch(s.url, tmp_path/'a.pth', 500)
    with pytest.raises(OSError, match='SHA-256 is not the published one'): fetch(s.url, tmp_path/'a.pth', 3, '0'*64)
    (tmp_path/'a.pth.part').write_bytes(DATA+b'more')                                             # 416: nothing left to ask for
    with pytest.raises(OSError, match='download failed'): fetch(s.url, tmp_path/'a.pth', 3)
    assert not [p for p in tmp_path.iterdir() if p.suffix in ('.pth', '.part')]
    assert fetch(s.url, tmp_path/'a.pth', 3, right).read_bytes()==DATA

def test_a_named_prior_is_fetched_once_and_then_works_offline(serve, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path)); torch.save(tiny.model.state_dict(), tmp_path/'src.pth')
    s = serve((tmp_path/'src.pth').read_bytes())
    monkeypatch.setitem(PRIORS, 'here', PRIORS['difface-ffhq-512']._replace(family=tiny.model.config, size_mb=3, url=s.url, sha256=sha256_of(tmp_path/'src.pth')))
    assert torch.equal(eps(load_prior('here', 'cpu')), eps(tiny)) and 'licence' in capsys.readouterr().err and len(s.ranges)==1
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert torch.equal(eps(load_prior('here', 'cpu')), eps(tiny)) and len(s.ranges)==1
    monkeypatch.setitem(PRIORS, 'gone', PRIORS['here'])
    with pytest.raises(PriorError, match='gone: not here and HF_HUB_OFFLINE is set'): load_prior('gone', 'cpu')

def test_many_at_once_fetch_once(serve, tmp_path):
    s = serve(DATA)
    threads = [threading.Thread(target=fetch, args=(s.url, tmp_path/'a.pth', 3)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert (tmp_path/'a.pth').read_bytes()==DATA and s.ranges==[0]

# -- the hub ----------------------------------------------------------------------------------------------------------------------

def cached(tmp_path, monkeypatch, repo):
    "Folder of a repository in a cache like that of huggingface_hub; to be filled."
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    at = tmp_path/'hub'/f'models--{repo.replace("/", "--")}'
    (at/'refs').mkdir(parents=True); (at/'refs/main').write_text('abc123')
    return at/'snapshots/abc123'

@pytest.mark.parametrize('kw', [dict(layout='older', safe=False, old=True), dict()], ids=str)
def test_a_prior_of_diffusers_in_the_hub_cache(tmp_path, monkeypatch, kw):
    net = network(); folder_of(net, cached(tmp_path, monkeypatch, 'google/ddpm-cat-256'), **kw)
    prior = load_prior('google/ddpm-cat-256', 'cpu')
    assert prior.name=='google/ddpm-cat-256' and torch.equal(eps(prior), eps(Prior(net, Schedule.linear(), 16)))
    cached(tmp_path, monkeypatch, 'google/ddpm-church-256').mkdir(parents=True)                                         # a download that was cut off
    assert where_is('google/ddpm-cat-256')==cache_path('google/ddpm-cat-256') and where_is('google/ddpm-church-256') is None
    person = tune(prior, y, lora=2, **KW)
    assert load_person(save_person(person, tmp_path/'p.safetensors'), device='cpu').name==prior.name                     # its base is found by its name

def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
    "Of the weights only the safe copy where there is one, and a pickle only where there is none."
    asked = []
    def snapshot(repo, allow_patterns, **kw): asked.append(allow_patterns); return str(tmp_path/repo.split('/')[1])
    monkeypatch.setattr('gen2res.prior.snapshot_download', snapshot)
    for name,kw in (('safe', dict()), ('old', dict(safe=False, layout='older')), ('new', dict(safe=False))): folder_of(network(), tmp_path/name, **kw); load_prior(f'user/{name}', 'cpu')
    assert [a for a in asked if any('bin' in p for p in a)]==[('diffusion_pytorch_model.bin',), ('unet/diffusion_pytorch_model.bin',)] and len(asked)==5

def test_a_damaged_file_in_the_hub_cache(tiny, tmp_path, monkeypatch):
    at = cached(tmp_path, monkeypatch, 'user/faces'); save_prior(tiny, at)
    blob = tmp_path/'hub/models--user--faces/blobs'/sha256_of(at/'model.safetensors')
    blob.parent.mkdir(); (at/'model.safetensors').rename(blob); (at/'model.safetensors').symlink_to(blob)
    assert torch.equal(eps(load_prior('user/faces', 'cpu')), eps(tiny))
    data = bytearray(blob.read_bytes()); data[-1] ^= 1; blob.write_bytes(data)
    with pytest.raises(PriorError, match='damaged; remove it and load again'): load_prior('user/faces', 'cpu')

class Hub:
    "A stand-in for HfApi that keeps what it is sent."
    def __init__(self, public=False): self.public,self.files = public,None
    def create_repo(self, repo, private, exist_ok): self.private = private and not self.public; return f'https://huggingface.co/{repo}'
    def repo_info(self, repo): return self
    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns=()):
        from fnmatch import fnmatch
        from pathlib import Path
        left = {n: d for n,d in (self.files or {}).items() if not any(fnmatch(n, p) for p in delete_patterns)}
        self.files = left | {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob('*') if p.is_file()}

@pytest.fixture
def hub(monkeypatch):
    h = Hub(); monkeypatch.setenv('HF_HUB_OFFLINE', '0'); monkeypatch.setattr('gen2res.tune.HfApi', lambda: h)
    return h

def downloaded(hub, folder):
    for name,data in hub.files.items(): (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_bytes(data)

def test_a_prior_is_pushed(tiny, hub, tmp_path, monkeypatch):
    tiny.card = {'data': 'seeds'}
    assert push_to_hub(tiny, 'user/tiny')=='https://huggingface.co/user/tiny' and hub.private
    assert set(hub.files)=={'README.md', 'config.json', 'model.safetensors'}
    readme = hub.files['README.md'].decode()
    assert readme.startswith('---\nlibrary_name: gen2res\n') and all(s in readme for s in ('# tiny', '16 px', "load_prior('user/tiny')", 'may be invented', '"data": "seeds"')) and 'Personal data' not in readme
    downloaded(hub, cached(tmp_path, monkeypatch, 'user/tiny'))
    assert torch.equal(eps(load_prior('user/tiny', 'cpu')), eps(tiny))

@pytest.mark.parametrize('lora', [None, 2])
def test_a_person_is_pushed(tiny, hub, tmp_path, monkeypatch, lora):
    person = tune(tiny, torch.cat([y, y.flip(-1)]), lora=lora, **KW)
    push_to_hub(person, 'user/anna')
    assert set(hub.files)==({'README.md', 'person.safetensors'} if lora else {'README.md', 'config.json', 'model.safetensors'})
    readme = hub.files['README.md'].decode()
    assert 'Personal data' in readme and (f"load_person('user/anna')" in readme and tiny.fingerprint() in readme if lora else True)
    downloaded(hub, cached(tmp_path, monkeypatch, 'user/anna'))
    assert (eps(load_person('user/anna', tiny, 'cpu'))-eps(person)).abs().max() < 1e-3

def test_a_prior_of_codes_is_pushed_whole(hub, tmp_path):
    latent_folder(tmp_path/'p'); push_to_hub(load_prior(tmp_path/'p', 'cpu'), 'user/codes')
    assert set(hub.files)=={'README.md', 'config.json', 'model.safetensors', 'vae/config.json', 'vae/diffusion_pytorch_model.safetensors'}

def test_the_stand_in_is_called_as_the_hub_is(tiny, monkeypatch):
    from unittest import mock
    from huggingface_hub import HfApi
    api = mock.create_autospec(HfApi, instance=True); monkeypatch.setenv('HF_HUB_OFFLINE', '0'); monkeypatch.setattr('gen2res.tune.HfApi', lambda: api)
    push_to_hub(tiny, 'user/tiny')
    assert api.create_repo.call_args==mock.call('user/tiny', private=True, exist_ok=True) and api.upload_folder.call_count==1

def test_an_earlier_upload_is_replaced(tiny, hub):
    hub.files = {'person.safetensors': b'', 'notes.txt': b''}; push_to_hub(tiny, 'user/anna')
    assert 'person.safetensors' not in hub.files and {'notes.txt', 'model.safetensors', 'config.json'} <= {*hub.files}

def test_what_is_not_pushed(tiny, hub, monkeypatch):
    hub.public = True
    with pytest.raises(PriorError, match='user/anna: not uploaded .*is public'): push_to_hub(tiny, 'user/anna')
    assert hub.files is None and push_to_hub(tiny, 'user/anna', private=False) and hub.files
    with pytest.raises(PriorError, match='not a hub id'): push_to_hub(tiny, 'anna')
    monkeypatch.setattr(hub, 'create_repo', lambda *a, **k: (_ for _ in ()).throw(RuntimeError('401 Unauthorized\nlong story')))
    with pytest.raises(PriorError, match='401 Unauthorized.*hf auth login') as e: push_to_hub(tiny, 'user/anna')
    assert '\n' not in str(e.value)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(PriorError, match='HF_HUB_OFFLINE is set'): push_to_hub(tiny, 'user/anna')
