"Restore, with and without an album; adapt a restorer; look at what the knobs do. Start: `gen2res demo` (a CPU is enough), or as a Hugging Face Space."
import os
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

import atexit, hashlib, itertools, lzma, secrets, shutil, signal, tempfile, threading, time, warnings, zipfile, zlib
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
import gradio as gr
import gen2res.images
from gen2res.album import album_sheet, album_worries, personal_album, read_album
from gen2res.degrade import degrade
from gen2res.explore import EVERYS, NS, SCALES, SIZES, Lab, NotYet, render_album, render_guidance, render_K, render_pseudo
from gen2res.faces import find_faces, marked
from gen2res.images import ImageError, as_picture, grid, list_images, load_photo, resize, save_image
from gen2res.prior import PriorError, load_prior
from gen2res.pseudo import pseudo_numbers
from gen2res.restore import NOTICE, OWN, RECIPES, Restorer, damaged_astronaut, read_face, recipe_arguments, restore_file, suggested_K
from gen2res.restorers import OnePass, RESTORER_PRESETS, adapt, load_restorer, save_restorer
from gen2res.sample import counted, generate
from gen2res.tune import PRESETS, load_person, save_person, tune, tuning_for

try: import spaces; on_gpu = spaces.GPU(duration=120)               # on a Space: borrow a GPU for so many seconds
except ImportError: on_gpu = lambda f: f

PIXELS,BYTES,ALBUM,INPUTS = 40_000_000,'40mb',60,500 # limits of one upload: pixels of a photo, size of a file, photos of an album, photos of a zip
gen2res.images.MAX_PIXELS = PIXELS
AGE,TICK = 600,300 # seconds: what gradio keeps of an upload or a result is deleted at this age; an open page makes its own young again so often
PRIVACY = 'What you upload and what is made of it is kept in a temporary folder of your own and deleted when you close the page, at the latest within twenty minutes of that. Nothing is sent elsewhere.'
prior = lru_cache(load_prior)

# visitors

def name(request):
    "A visitor's, from what the browser says, which is anything: never a path."
    return hashlib.sha256(str(getattr(request, 'session_hash', None)).encode()).hexdigest()[:16]

def _temporary(kind):
    "A folder that is gone when the server ends."
    d = Path(tempfile.mkdtemp(prefix=f'gen2res_{kind}_')); atexit.register(shutil.rmtree, d, ignore_errors=True)
    return d

VISITORS = _temporary('visitors') # made here, not when first asked for: a Space does its work in processes that come and go

def folder(request:gr.Request) -> Path:
    "This visitor's own temporary folder."
    return VISITORS/name(request)

def paths(payload):
    "What a page holds in files, as it came. (gradio's own reading would decode every picture, leave a stub beside every file, and name the server's folders.)"
    return payload and (payload.path if hasattr(payload, 'path') else [p.path for p in payload.root if p])

def keep(request:gr.Request, *files):
    "What an open page holds in files is made young again, and so not deleted."
    for f in [str(folder(request)), *files]:
        for p in [f] if isinstance(f, str) else f or []:
            with suppress(OSError): os.utime(p)                         # it may just have gone

def forget(request:gr.Request):
    "Stop what this visitor runs, and delete what they left."
    _change(request, 'left'); cancel(request); LABS.pop(name(request), None); shutil.rmtree(folder(request), ignore_errors=True)

def sweep():
    "Forget those who came without a page, and of whom nothing was heard for a while."
    for d in VISITORS.glob('*'):
        with suppress(OSError):
            if time.time()-d.stat().st_mtime>AGE+TICK: LABS.pop(d.name, None); shutil.rmtree(d)

class Cancelled(Exception): "The visitor pressed Cancel."

STOPS = _temporary('stops') # words of each visitor's; whoever works for them looks whether they change. In files, for processes that come and go

def _word(request, what):
    try: return (STOPS/f'{name(request)}_{what}').read_text()
    except OSError: return ''

def _change(request, what): (STOPS/f'{name(request)}_{what}').write_text(secrets.token_hex(8))

def cancel(request:gr.Request): _change(request, 'stop')

def said_stop(request:gr.Request):
    cancel(request); gr.Info('Cancelled.', duration=3)

def stops(button, *started):
    "What runs ends at its next step; what still waits in the queue is taken out of it. (A queue of its own, for a toast needs one.)"
    button.click(said_stop, concurrency_id='stop', concurrency_limit=None, show_progress='hidden', api_visibility='private', cancels=list(started))

@contextmanager
def work(request, progress): # -> watch(stage, done, of) for the library's long work
    "Shows how far it is, stops at the next step when cancelled, turns every error into a toast."
    stop,gone,since = _word(request, 'stop'),_word(request, 'left'),{}
    keep(request); sweep()
    def watch(stage, done, of):
        keep(request)
        if _word(request, 'stop')!=stop: raise Cancelled()
        if done==1 or stage not in since: since[stage] = time.monotonic() # the next face begins anew
        start = since[stage]
        left = (time.monotonic()-start)/done*(of-done)
        if progress is not None: progress((done, of), desc=f'{stage}, {left:.0f} s left', unit='steps')
    try: yield watch
    except Cancelled: raise gr.Error('Cancelled.', duration=3, print_exception=False) from None
    except (ImageError, PriorError, ValueError, OSError, RuntimeError, MemoryError) as e: raise gr.Error(plain(e), print_exception=False) from None
    finally:
        if _word(request, 'left')!=gone: shutil.rmtree(folder(request), ignore_errors=True)   # the page was closed while this wrote

def plain(e):
    "An error's line, without the server's folders."
    return ' '.join(Path(w.strip(':')).name + ':'*w.endswith(':') if w.startswith(tempfile.gettempdir()) else w for w in (str(e) or type(e).__name__).splitlines()[0].split(' '))

def needed(thing, what):
    if not thing: raise gr.Error(f'{what} first.', print_exception=False)
    return thing

def preview(path, side=1400):
    "A copy small enough for the screen."
    im = load_photo(path); im.thumbnail((side, side))
    return im

# restore

def found(photo, request:gr.Request=None):
    "(the photo with its faces marked, choices of faces) of an upload."
    if not photo: return None,gr.CheckboxGroup(choices=[], value=[])
    with work(request, None):
        im = load_photo(photo); faces = find_faces(im)
    if not faces: gr.Info('No face found: draw a box, or take the middle of the photo.')
    options = [(f'{i}: {f.side:.0f} pixels', str(i)) for i,f in enumerate(faces)] or [('the middle', 'centre')]
    return marked(im, faces),gr.CheckboxGroup(choices=options, value=[v for _,v in options])

def default_K(recipe): return recipe_arguments(recipe, damaged_astronaut(prior().side)[0], prior())['K']

@on_gpu
def suggested(photo, request:gr.Request=None, progress=gr.Progress()):
    "K at which photo and restoration can no longer be told apart (Gen2Res Eq. 9)."
    with work(request, progress) as watch:
        y,_ = read_face(needed(photo, 'Choose a photo'), prior().side)
        return suggested_K(y, prior(), callback=counted(watch, 'judging the damage', default_K('plain')))[0]

def _box(text):
    if not (text or '').strip(): return None
    try: x,y,w,h = map(float, text.split(','))
    except ValueError: raise gr.Error(f'A box is x,y,w,h in pixels, not {text!r}.', print_exception=False) from None
    return x,y,w,h

SAID,SHOWN = threading.local(),warnings.showwarning # what this thread was warned of; how others are told

def _heard(message, *where, **kw): SHOWN(message, *where, **kw) if getattr(SAID, 'lines', None) is None else SAID.lines.append(message)

def _toasted(f, *args):
    "f(*args), its warnings as toasts. (Not by catch_warnings, which is all threads'.)"
    warnings.simplefilter('always', UserWarning); warnings.showwarning,SAID.lines = _heard,[]
    try: return f(*args)
    finally:
        for m in dict.fromkeys(map(str, SAID.lines)): gr.Warning(plain(m))
        SAID.lines = None

@on_gpu
def run(photo, faces, box, recipe, K, samples, seed, person=None, request:gr.Request=None, progress=gr.Progress()):
    "((before, after), sheet, file) for an uploaded photo."
    with work(request, progress) as watch:
        load_photo(needed(photo, 'Choose a photo'))
        base = load_person(person, prior(), prior().device) if person else prior()
        r = _toasted(lambda: Restorer(base, recipe, int(K), watch=watch))
        head = _box(box); which = 'all' if head else ','.join(needed(faces, 'Choose a face'))
        out,sheet = _toasted(partial(restore_file, which=which, box=head, force=True, seed=int(seed or 0), samples=int(samples)), photo, r, folder(request)/'restored')
        return (preview(photo), preview(out)),preview(sheet),str(out)

def example(request:gr.Request=None):
    "The damaged astronaut, as a file."
    return str(save_image(damaged_astronaut(256)[0], folder(request)/'astronaut.png'))

DAMAGES = {'camera': ('camera:mild', dict(scale=2)), 'jpeg': ('jpeg', dict(q=10)), 'scratches': ('scratches', dict(count=4, dust=16))}

@lru_cache
def examples() -> list: # of files
    "The astronaut and people whom the prior made up, each damaged in another way; nobody's photos, so one folder for all visitors."
    into,people = _temporary('examples'),generate(prior(device='cpu'), 3, 30, seeds=50)   # no GPU is there to borrow yet
    damaged = {'small': damaged_astronaut(64)[0]} | {name: degrade(x, r, seeds=0, **kw) for x,(name,(r,kw)) in zip(people.split(1), DAMAGES.items())}
    return [str(save_image(resize(x, 128).clamp(-1, 1), into/f'{name}.png')) for name,x in damaged.items()]

# an album

def few(files):
    if len(files)>ALBUM: raise gr.Error(f'{len(files)} photos; at most {ALBUM} here.', print_exception=False)
    return files

def looked_at(files):
    "(contact sheet, text) of uploaded photos of one person."
    if not files: return None,''
    with work(None, None): members = read_album(few(files), prior().side)
    good = [m for m in members if not m.verdict]
    lines = [f'**{len(good)} of {len(members)} can be used.**'] + [f'- {m.path.name}: {m.verdict}' for m in members if m.verdict]
    lines += [f'- {l}' for l in album_worries(members, prior().side)] if good else []
    return album_sheet(members) if any(m.image is not None for m in members) else None,'\n'.join(lines)

@on_gpu
def tuned(files, preset, request:gr.Request=None, progress=gr.Progress()):
    "The file of a prior tuned on an album."
    with work(request, progress) as watch:
        album = personal_album(few(needed(files, 'Choose photos of the person')), prior().side); kw = tuning_for(prior(), preset)
        step = iter(range(1, kw['iters']+1))
        p = tune(prior(), album, **kw, callback=lambda *a: watch('tuning the prior', next(step), kw['iters']))
        return str(save_person(p, folder(request)/'person.safetensors'))

def run_person(photo, K, person, request:gr.Request=None, progress=gr.Progress()):
    "((before, after), file): the largest face by the tuned prior."
    with work(request, progress): seen = find_faces(load_photo(needed(photo, 'Choose a photo')))
    result,_,file = run(photo, ['largest' if seen else 'centre'], '', 'plain', K, 1, 0, needed(person, 'Tune the prior'), request, progress)
    return result,file

# a restorer

def _is_picture(name):
    "By its name; a Mac's notes on its pictures have the names of pictures."
    return name.suffix.lower() in ('.png','.jpg','.jpeg','.webp','.tif','.tiff','.bmp') and not name.name.startswith('.') and '__MACOSX' not in name.parts

def _free(into, name):
    "A place for this file; two of one name, but for the suffix, get two places."
    taken = {p.stem for p in into.iterdir()}
    return into/(next(s for i in itertools.count() if (s := f'{name.stem}_{i}' if i else name.stem) not in taken)+name.suffix)

def _unzipped(files, into):
    "The pictures among the uploads, those inside of zip files too; names that lead out of the folder are cut off."
    shutil.rmtree(into, ignore_errors=True); into.mkdir(parents=True); many = large = 0
    for f in map(Path, files):
        if f.suffix.lower()!='.zip': shutil.copy(f, _free(into, f)); continue
        try:
            with zipfile.ZipFile(f) as z:
                inside = [i for i in z.infolist() if not i.is_dir() and _is_picture(Path(i.filename))]
                if any(i.flag_bits&1 for i in inside): raise ImageError(f'{f.name}: is encrypted')
                many,large = many+len(inside),large+sum(i.file_size for i in inside)
                if many>INPUTS or large>1e9: raise ImageError(f'{f.name}: more than {INPUTS} pictures or a gigabyte')
                for i in inside: _free(into, Path(i.filename)).write_bytes(z.read(i))
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError) as e: raise ImageError(f'{f.name}: is not a zip, or is damaged ({e})') from None
    if len(list_images([into]))>INPUTS: raise ImageError(f'more than {INPUTS} pictures')
    return into

def _squares(paths):
    "Of the photos that can be read."
    for p in paths:
        with suppress(ImageError): yield read_face(p, prior().side)[0]

@on_gpu
def adapted(files, iters, request:gr.Request=None, progress=gr.Progress()):
    "The file of a restorer adapted to uploads, and how the first of them look before and after."
    with work(request, progress) as watch:
        lq = _unzipped(needed(files, 'Choose photos, or a zip of them,'), folder(request)/'lq')
        base = load_restorer('swinir64', prior().device); place = folder(request)/'adapting'; shutil.rmtree(place, ignore_errors=True)
        failed = []; r = adapt(base, lq, prior(), place, report=failed.append, watch=watch, losses=dict(gan=0), **RESTORER_PRESETS['paper'] | dict(iters=int(iters)))
        out = save_restorer(r, folder(request)/'adapted.safetensors')
        if failed: gr.Warning(plain(failed[0]) + (f' ({len(failed)-1} more)' if failed[1:] else ''))
        some = list(itertools.islice(_squares(list_images([lq])), 4))
        rows = [(x, f(x)) for x in some for f in (base, r)]
    pictures = sum([[x, rows[2*i][1], rows[2*i+1][1]] for i,x in enumerate(some)], [])
    return grid(pictures, ['photo','before','after']*len(some), cols=3, side=160),str(out)

@on_gpu
def one_pass(photo, file, request:gr.Request=None):
    "A photo through the adapted restorer: no prior, no noise."
    with work(request, None):
        r = OnePass(load_restorer(needed(file, 'Adapt a restorer'), prior().device), prior().side)
        out,_ = _toasted(partial(restore_file, force=True), needed(photo, 'Choose a photo'), r, folder(request)/'one_pass')
        return (preview(photo), preview(out)),str(out)

# explore

LABS = {} # visitor -> their Lab

def lab_of(photo, request) -> Lab:
    "This visitor's experiments with this photo."
    y,_ = read_face(needed(photo, 'Choose a photo'), prior().side)
    old = LABS.get(name(request))
    if old is None or not old.photo.equal(y): LABS[name(request)] = Lab(y, prior(), folder=folder(request)/'explore')
    return LABS[name(request)]

class Exploration:
    "A figure of the notebooks, for the page. Methods, not partials: gradio hands its request and its progress to nothing else; no lambdas: it goes to another process."
    def __init__(self, render, job, main, other): # job(lab, value, other) -> what must be tried; main, other: (name, values) of the two knobs
        self.render,self.job,self.knobs = render,job,dict([main, other])

    def _figure(self, lab, *values): return as_picture(self.render(lab, **dict(zip(self.knobs, values))))

    def drawn(self, photo, value, other, request:gr.Request=None):
        "The figure, if all that it needs was tried."
        if not photo: return None
        with work(request, None):
            try: return self._figure(lab_of(photo, request).looking(), value, other)
            except NotYet: gr.Info('Not tried yet: press Try.')

    @on_gpu
    def tried(self, photo, value, other, request:gr.Request=None, progress=gr.Progress()):
        "Everything along the first knob is tried, then drawn."
        with work(request, progress) as watch:
            lab,choices = lab_of(photo, request),next(iter(self.knobs.values()))
            for i,v in enumerate(choices):
                lab.callback = lambda *a: watch('trying', i+1, len(choices)+1)
                lab.callback(); lab(self.job(lab, v, other))
            return self._figure(lab, value, other)

def with_K(lab, K, seed): return lab.restored(K, seed=seed)
def guided(lab, scale, every): return lab.drawn(every, scale)
def constrained(lab, n, every): return lab.constrained('generative', n, every)
def held(lab, N, seed): n = pseudo_numbers(prior()); return lab.target(n['K'], n['L'], N, seed)

def explorations() -> dict: # name -> Exploration
    Ks = Lab(damaged_astronaut(prior().side)[0], prior()).Ks
    return {
        'noise: K':       Exploration(render_K, with_K, ('K', Ks), ('seed', range(4))),
        'guidance':       Exploration(render_guidance, guided, ('scale', SCALES), ('every', EVERYS)),
        'album size':     Exploration(render_album, constrained, ('n', SIZES[:5]), ('every', (5, 20))),
        'pseudo targets': Exploration(render_pseudo, held, ('N', NS), ('seed', range(4)))}

# the page

def picture(label, height=340, **kw): return gr.Image(format='png', label=label, height=height, buttons=['download','fullscreen'], alt_text=label, **kw)

def sheet_of(label): return picture(label, None, elem_classes='sheet')

def upload(label='Photo'): return picture(label, type='filepath', sources=['upload','clipboard','webcam'])

def slider(): return gr.ImageSlider(type='pil', format='png', label='Before | after', interactive=False, max_height=520)

def download(label): return gr.File(label=label, interactive=False, height=90, elem_classes='handout')

def buttons(what):
    with gr.Row(): return gr.Button(what, variant='primary'),gr.Button('Cancel')

QUEUE = dict(concurrency_id='work') # one queue for all that computes for long: one piece of work at a time

def K_slider(recipe): return gr.Slider(0, prior().schedule.T, default_K(recipe), step=1, label='K: noise steps', info='More repairs more, and invents more')

def settings(K):
    "What is seldom changed: recipe, samples, seed, box."
    with gr.Accordion('More settings', open=False):
        recipe = gr.Dropdown([r for r in RECIPES if r not in OWN], value='plain', label='Recipe', info='generative: an album is made from the photo first, minutes on a CPU')
        samples,seed = gr.Slider(1, 8, 1, step=1, label='Samples', info='Several: the most faithful is kept'),gr.Number(0, precision=0, minimum=0, label='Seed')
        box = gr.Textbox(label='Box x,y,w,h', info='In pixels, around a head that was not found')
    recipe.change(default_K, recipe, K)
    return recipe,samples,seed,box

def restore_tab():
    with gr.Row():
        with gr.Column(scale=2):
            photo = upload()
            gr.Examples([[f] for f in examples()], photo, cache_examples=False); guess = gr.Button('Suggest K', size='sm')
            faces,K = gr.CheckboxGroup([], label='Faces'),K_slider('plain')
            go,no = buttons('Restore')
            recipe,samples,seed,box = settings(K)
        with gr.Column(scale=3):
            result = slider(); file = download('PNG with its record')
            with gr.Accordion('All of it: faces, samples, and where they differ', open=False): sheet = sheet_of('Sheet')
            with gr.Accordion('Faces found', open=False): seen = sheet_of('Faces')
    photo.change(found, photo, [seen, faces]).failure(lambda: None, None, photo) # what cannot be read is taken away again
    stops(no, guess.click(suggested, photo, K, **QUEUE),
          go.click(run, [photo, faces, box, recipe, K, samples, seed], [result, sheet, file], show_progress_on=result, **QUEUE))

def album_tab():
    gr.Markdown('About twenty photos of one person, the more different the better: the prior learns who it is, and forgets everybody else.')
    with gr.Row():
        with gr.Column(scale=2):
            files = gr.File(file_count='multiple', file_types=['image'], label='Photos of the person'); said = gr.Markdown(); album = sheet_of('Album')
            preset = gr.Dropdown(list(PRESETS), value='all-levels', label='Tuning', info='fast: for K up to 400 (at 256 pixels); generative and personal are the paper\'s, for a GPU')
            learn,no = buttons('Tune'); person = download('The tuned prior')
        with gr.Column(scale=3):
            photo = upload('Photo to restore'); K = K_slider('personal'); go,no2 = buttons('Restore')
            result = slider(); file = download('PNG with its record')
    files.change(looked_at, files, [album, said]).failure(lambda: None, None, files)
    started = learn.click(tuned, [files, preset], person, **QUEUE),go.click(run_person, [photo, K, person], [result, file], show_progress_on=result, **QUEUE)
    for b in (no, no2): stops(b, *started)

def adapt_tab():
    gr.Markdown('Photos that were all damaged in the same, unknown way, dozens or hundreds of them. The prior cleans them, the small restorer learns to do the same in one pass, and the prior is not needed any more.')
    with gr.Row():
        with gr.Column(scale=2):
            files = gr.File(file_count='multiple', label='Photos, or a zip'); iters = gr.Slider(10, 2000, 200, step=10, label='Iterations')
            learn,no = buttons('Adapt'); adapted_file = download('The adapted restorer'); sheet = sheet_of('The first of them')
        with gr.Column(scale=3):
            photo = upload('Another photo of the same kind'); go = gr.Button('Restore in one pass', variant='primary'); result = slider(); file = download('PNG with its record')
    stops(no, learn.click(adapted, [files, iters], [sheet, adapted_file], show_progress_on=sheet, **QUEUE),
          go.click(one_pass, [photo, adapted_file], [result, file], show_progress_on=result, **QUEUE))

def explore_tab():
    photo = upload(); demo = gr.Button('Use the example', size='sm'); demo.click(example, None, photo)
    for title,e in explorations().items():
        with gr.Tab(title):
            with gr.Row(): knobs = [gr.Dropdown(list(values), value=values[len(values)//2] if not i else values[0], label=k) for i,(k,values) in enumerate(e.knobs.items())]
            go,no = buttons('Try'); figure = sheet_of('Figure')
            for k in knobs: k.input(e.drawn, [photo, *knobs], figure)
            stops(no, go.click(e.tried, [photo, *knobs], figure, **QUEUE))

CSS = '''.gradio-container {max-width: 1200px !important; margin: auto}
.sheet img {padding-top: 34px} /* the names above its pictures stay clear of the buttons */
.handout .empty {min-height: 70px !important}'''

def build():
    "The page."
    with gr.Blocks(title='gen2res', delete_cache=(AGE, AGE)) as page:
        gr.Markdown('# gen2res\nNoise a bad photo, then denoise it with a model of good ones.')
        for title,tab in (('Restore', restore_tab), ('With an album', album_tab), ('Adapt a restorer', adapt_tab), ('Explore', explore_tab)):
            with gr.Tab(title): tab()
        gr.Markdown(f'{NOTICE} {PRIVACY}')
        page.unload(forget)
        held = [b for b in page.blocks.values() if isinstance(b, (gr.File, gr.Image, gr.ImageSlider))]
        for b in held: b.preprocess = paths
        gr.Timer(TICK).tick(keep, held, queue=False, show_progress='hidden', api_visibility='private')
    return page

def launch(**kw): # of Blocks.launch
    if threading.current_thread() is threading.main_thread():
        for s in ('SIGTERM','SIGHUP'):                                  # as by Ctrl-C: what visitors left is deleted
            if (n := getattr(signal, s, None)) and signal.getsignal(n)!=signal.SIG_IGN: signal.signal(n, signal.default_int_handler)     # nohup ignores it
    page = build().queue(default_concurrency_limit=1, max_size=40); atexit.register(page.close, verbose=False)
    return page.launch(ssr_mode=False, show_error=True, max_file_size=BYTES, css=CSS, footer_links=['gradio'], **kw)

if __name__=='__main__': launch()
