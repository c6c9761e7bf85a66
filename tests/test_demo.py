"The page builds, its functions do what the command line does, and what goes wrong is a toast."
import json, os, pickle, subprocess, sys, threading, time, urllib.request, warnings, zipfile
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
gr = pytest.importorskip('gradio')
sys.path.insert(0, str(Path(__file__).parent.parent/'demo'))
import app
from gen2res.images import astronaut, load_image, png_text, resize, save_image, to_array
from gen2res.restore import Restorer, read_record, restore_file
from test_team import free_port

class Visitor(SimpleNamespace):
    def __init__(self, name): super().__init__(session_hash=f'test_{name}')

@pytest.fixture
def me(request):
    v = Visitor(request.node.name); yield v; app.forget(v); assert not app.folder(v).exists() and app.name(v) not in app.LABS

def restored(photo, me, K=8, **kw):
    a = dict(faces=['0'], box='', recipe='plain', K=K, samples=1, seed=5) | kw
    return app.run(photo, *a.values(), request=me, progress=None)

def test_same_file_as_the_command_line(faces64, me, tmp_path):
    photo = app.example(me)
    (before,after),sheet,file = restored(photo, me)
    out,_ = restore_file(photo, Restorer(faces64, K=8), tmp_path, seed=5)
    assert Path(file).read_bytes()==out.read_bytes() and 'generative model' in png_text(file, 'Comment') and before.size==after.size==(256, 256)

def test_samples_and_recipe_are_passed_on(me):
    _,sheet,file = restored(app.example(me), me, recipe='ilvr', samples=3)
    r = read_record(file); assert r['recipe']=='ilvr' and r['samples']==3 and r['K']==8 and r['seed']==5

def test_faces_are_found_and_chosen(me, tmp_path):
    photo = str(save_image(resize(app.damaged_astronaut(512)[1], 300), tmp_path/'a.png'))
    seen,boxes = app.found(photo, me); assert len(boxes.choices)==1 and boxes.value==['0'] and seen.size==(300, 300)
    none = str(save_image(torch.zeros(1,3,90,200), tmp_path/'none.png')); assert app.found(none, me)[1].value==['centre'] and app.found(None, me)[0] is None
    with pytest.raises(gr.Error, match='no face found'): restored(none, me, faces=['0'])
    assert restored(none, me, faces=['centre'])[2] and restored(none, me, box='20,10,50,50')[2]
    for box in ('a,b,c,d', '10 20 30 40', '10,20,30'):
        with pytest.raises(gr.Error, match='x,y,w,h'): restored(none, me, box=box)
    with pytest.raises(gr.Error, match='Choose a face'): restored(none, me, faces=[])

def test_a_visitor_s_name_is_no_path(tmp_path):
    (tmp_path/'mine').mkdir(); app.forget(v := SimpleNamespace(session_hash=f'x/../../../..{tmp_path}/mine'))
    assert (tmp_path/'mine').exists() and app.folder(v).parent==app.VISITORS and app.folder(v)!=app.folder(Visitor('other'))

def test_who_came_without_a_page_is_forgotten(me):
    gone,here = Visitor('gone'),Visitor('here'); app.example(gone); app.example(here); app.LABS[app.name(gone)] = None
    os.utime(app.folder(gone), (0, 0)); os.utime(app.folder(here), (0, 0)); app.keep(here)
    with app.work(me, None): pass
    assert not app.folder(gone).exists() and app.name(gone) not in app.LABS and app.folder(here).exists(); app.forget(here)

def test_zips_are_limited_together(tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'INPUTS', 3)
    for z in 'ab':
        with zipfile.ZipFile(tmp_path/f'{z}.zip', 'w') as f:
            for i in range(2): f.writestr(f'{z}{i}.png', b'x')
    with pytest.raises(app.ImageError, match='b.zip: more than 3 pictures'): app._unzipped([str(tmp_path/'a.zip'), str(tmp_path/'b.zip')], tmp_path/'lq')
    assert not list((tmp_path/'lq').glob('b*'))

def test_a_page_closed_while_a_result_is_written(me):
    with app.work(me, None):
        app.forget(me); app.example(me)
        assert app.folder(me).exists()
    assert not app.folder(me).exists()

def test_suggested_K_is_one_of_the_schedule(me): assert 0<=app.suggested(app.example(me), me, None)<=1000

@pytest.mark.parametrize('make,said', [(lambda p: p.write_text('#!/bin/sh'), 'not a picture'), (lambda p: p.write_bytes(b''), 'empty'), (lambda p: bomb(p), 'too many pixels')])
def test_garbage_is_a_toast(make, said, me, tmp_path):
    make(tmp_path/'a.png')
    for f in (lambda: app.found(str(tmp_path/'a.png'), me), lambda: restored(str(tmp_path/'a.png'), me), lambda: app.explorations()['noise: K'].drawn(str(tmp_path/'a.png'), 5, 0, me)):
        with pytest.raises(gr.Error, match=said) as e: f()
        assert str(tmp_path) not in str(e.value)
    with pytest.raises(gr.Error, match='Choose'): restored(None, me)

def bomb(path):
    "A file of few bytes that says it is 30,000 x 30,000."
    import struct, zlib
    chunk = lambda kind, d: struct.pack('>I', len(d))+kind+d+struct.pack('>I', zlib.crc32(kind+d))
    path.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(b'\0'*100))+chunk(b'IEND', b''))

def test_cancel_stops_within_a_step(me):
    photo,ended = app.example(me),[]
    def go():
        try: restored(photo, me, K=1000)
        except gr.Error as e: ended.append(str(e))
    t = threading.Thread(target=go); t.start()
    time.sleep(2); start = time.monotonic(); app.cancel(me); t.join(30)
    assert time.monotonic()-start<10 and 'Cancelled' in ended[0]
    app.cancel(me)                                                        # nothing to stop

def test_one_visitor_does_not_stop_another(me):
    other = Visitor('other')
    with app.work(me, None) as mine, app.work(other, None) as theirs:
        app.cancel(other); mine('x', 1, 2)
        with pytest.raises(app.Cancelled): theirs('x', 1, 2)

def test_what_ends_first_does_not_hide_the_other(me):
    with app.work(me, None) as long:
        with app.work(me, None) as short: short('x', 1, 2)
        app.cancel(me)
        with pytest.raises(app.Cancelled): long('x', 1, 2)
    with app.work(me, None) as later: later('x', 1, 2)                       # only what ran then

def test_work_in_another_process_is_cancelled_and_leaves_nothing(me, tmp_path):
    "As on a Space that lends its GPU to processes that come and go."
    pid = os.fork()
    if not pid:
        try:
            with app.work(me, None) as watch:
                (tmp_path/'began').touch()
                while True: watch('x', 1, 2); app.folder(me).mkdir(exist_ok=True); (app.folder(me)/'x').touch(); time.sleep(.02)
        except BaseException as e: os._exit(7 if isinstance(e, gr.Error) else 1)
    while not (tmp_path/'began').exists(): time.sleep(.01)
    time.sleep(.3); app.forget(me)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==7 and not app.folder(me).exists()

def test_the_time_left_is_that_of_the_face_at_hand(me, monkeypatch):
    now,said = [0.],[]; monkeypatch.setattr(app.time, 'monotonic', lambda: now[0])
    with app.work(me, lambda at, desc, unit: said.append(desc)) as watch:
        for done in (1, 2, 1, 2): now[0] += 10; watch('restoring', done, 3)
    assert said[1]==said[3]=='restoring, 5 s left'

def test_explorations_can_go_to_another_process():
    for e in app.explorations().values(): assert pickle.loads(pickle.dumps(e)).knobs==e.knobs

def test_an_album_is_looked_at_tuned_and_used(me, tmp_path, monkeypatch):
    monkeypatch.setitem(app.PRESETS, 'fast', dict(iters=3, batch=2, lr=1e-4))
    files = [str(save_image(astronaut(96).roll(3*i, -1)*(1-.1*i), tmp_path/f'{i}.png')) for i in range(3)]; (tmp_path/'no.png').write_text('x'); files.append(str(tmp_path/'no.png'))
    sheet,text = app.looked_at(files); assert '3 of 4 can be used' in text and 'no.png' in text and 'only 3' in text and sheet.width>100
    assert app.looked_at([])==(None, '')
    for f in (app.looked_at, lambda f: app.tuned(f, 'fast', me, None)):
        with pytest.raises(gr.Error, match='at most'): f(files*20)
    person = app.tuned(files, 'fast', me, None)
    (_,after),file = app.run_person(app.example(me), 6, person, me, None)
    assert read_record(file)['K']==6 and read_record(file)['weights']!=app.prior().fingerprint()
    with pytest.raises(gr.Error, match='Tune'): app.run_person(app.example(me), 6, None, me, None)

def test_a_restorer_is_adapted_and_used(me, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(2): z.write(save_image(astronaut(64)*(.8-.2*i), tmp_path/f'{i}.png'), f'../../deep/{i}.png')
        z.writestr('evil.sh', 'rm')
    sheet,file = app.adapted([str(tmp_path/'a.zip')], 2, me, None)
    assert sorted(p.name for p in (app.folder(me)/'lq').iterdir())==['0.png','1.png']       # no script, nothing outside
    (before,after),out = app.one_pass(app.example(me), file, me); assert after.size==(256, 256)
    (tmp_path/'b.zip').write_text('no zip')
    with pytest.raises(gr.Error, match='not a zip'): app.adapted([str(tmp_path/'b.zip')], 2, me, None)

def test_every_photo_of_a_zip_is_taken_once(tmp_path):
    photo = save_image(astronaut(16), tmp_path/'1.png')
    with zipfile.ZipFile(tmp_path/'mac.zip', 'w') as z:
        for d in 'abc': z.write(photo, f'{d}/1.png'); z.writestr(f'__MACOSX/{d}/._1.png', b'x')
        z.write(save_image(astronaut(16), tmp_path/'1.jpg'), 'd/1.jpg')
    got = app._unzipped([str(tmp_path/'mac.zip'), str(photo)], tmp_path/'lq')
    assert sorted(p.name for p in got.iterdir())==['1.png', '1_1.png', '1_2.png', '1_3.jpg', '1_4.png'] and all(load_image(p).shape==(1,3,16,16) for p in got.iterdir())
    with zipfile.ZipFile(tmp_path/'bad.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.png', bytes(range(256))*40)
    raw = bytearray((tmp_path/'bad.zip').read_bytes()); raw[40:60] = b'\xff'*20; (tmp_path/'bad.zip').write_bytes(raw)
    with pytest.raises(app.ImageError, match='bad.zip: is not a zip, or is damaged'): app._unzipped([str(tmp_path/'bad.zip')], tmp_path/'lq2')

def test_another_s_warnings_are_no_toasts_here(me, monkeypatch):
    said = []; monkeypatch.setattr(gr, 'Warning', said.append)
    def mine():
        t = threading.Thread(target=lambda: warnings.warn('theirs')); t.start(); t.join(); warnings.warn('mine')
    with pytest.warns(UserWarning, match='theirs'), warnings.catch_warnings():
        monkeypatch.setattr(app, 'SHOWN', lambda m, *a, **kw: warnings._showwarnmsg_impl(warnings.WarningMessage(m, *a))); app._toasted(mine)
    assert said==['mine']

def test_what_the_command_line_notes_is_a_toast(me, tmp_path, monkeypatch):
    said = []; monkeypatch.setattr(gr, 'Warning', said.append)
    restored(str(save_image(astronaut(512), tmp_path/'large.png')), me); assert 'nothing finer is repaired' in said[0]

def test_the_limit_of_pixels_is_every_upload_s(me, tmp_path, monkeypatch):
    import gen2res.images; assert gen2res.images.MAX_PIXELS==app.PIXELS
    monkeypatch.setattr('gen2res.images.MAX_PIXELS', 100); photo = app.example(me)
    for f in (lambda: app.found(photo, me), lambda: app.suggested(photo, me, None), lambda: app.explorations()['noise: K'].tried(photo, 5, 0, me, None)):
        with pytest.raises(gr.Error, match='more than the limit'): f()

def test_a_stopped_server_keeps_nothing_of_its_visitors(tmp_path):
    port = free_port(); (tmp_path/'t').mkdir()
    server = subprocess.Popen(['gen2res', 'demo', '--port', str(port)], env=os.environ | dict(TMPDIR=str(tmp_path/'t')), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert any(b'Running on' in l for l in server.stdout)
        sent = urllib.request.Request(f'http://127.0.0.1:{port}/gradio_api/upload', headers={'Content-Type': 'multipart/form-data; boundary=b'}, data=b'--b\r\n'
                                      b'Content-Disposition: form-data; name="files"; filename="mine.png"\r\n\r\n123\r\n--b--\r\n')
        kept = Path(json.loads(urllib.request.urlopen(sent).read())[0]); assert kept.exists() and list((tmp_path/'t').glob('gen2res_visitors_*'))
        server.terminate(); server.wait(60)
        assert not kept.exists() and not list((tmp_path/'t').glob('gen2res_*'))
    finally: server.kill()

def test_explore_draws_what_was_tried(me, monkeypatch):
    said = []; monkeypatch.setattr(gr, 'Info', lambda m: said.append(m))
    photo,all_ = app.example(me),app.explorations(); e = all_['noise: K']; Ks = e.knobs['K']; e.knobs['K'] = Ks[:3]
    assert e.drawn(photo, Ks[1], 0, me) is None and 'Try' in said[0]
    figure = e.tried(photo, Ks[1], 0, me, None)
    again = e.drawn(photo, Ks[0], 0, me); assert figure.size==again.size and to_bytes(figure)!=to_bytes(again)
    assert e.drawn(photo, Ks[4], 0, me) is None and set(all_)=={'noise: K','guidance','album size','pseudo targets'}
    assert app.LABS[app.name(me)].Ks==Ks                                # the curve's points are the knob's

def test_every_event_knows_its_visitor():
    "What may keep something must be told by whom it is asked, or visitors would share it."
    from gradio.helpers import special_args
    for f in app.build().fns.values():
        if f.inputs and f.name not in ('default_K', 'looked_at', 'load_example', 'keep'): assert any(isinstance(a, str) for a in special_args(f.fn, [0]*len(f.inputs), request='me')[0]), f.name

def to_bytes(im): return im.convert('RGB').tobytes()

def test_one_piece_of_work_at_a_time():
    "gradio's limit holds for each function by itself, unless they share a queue."
    long = {'run','run_person','suggested','tuned','adapted','one_pass','tried'}; fns = app.build().fns.values()
    assert {f.name for f in fns if f.concurrency_id=='work'}==long

def test_examples_are_pictures_of_nobody():
    assert [load_image(f).shape for f in app.examples()]==[(1,3,128,128)]*4 and app.examples() is app.examples()

def test_page_builds_with_png_everywhere():
    images = [b for b in app.build().blocks.values() if isinstance(b, (gr.Image, gr.ImageSlider))]
    assert len(images)>10 and all(b.format=='png' for b in images)
