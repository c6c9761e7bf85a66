"The page as a visitor uses it, in Chromium, and with twenty visitors at once. Without Chromium or Chrome on the PATH the browser's part is skipped, and says so."
import re, shutil, subprocess, sys, threading, time
from pathlib import Path
import pytest
from filelock import FileLock
gr = pytest.importorskip('gradio')
sys.path.insert(0, str(Path(__file__).parent.parent/'demo'))
import app
from gen2res.images import astronaut, save_image
from gen2res.restore import Restorer, damaged_astronaut, read_record, restore_file
from test_demo import bomb
from test_team import free_port

CHROME = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
in_browser = pytest.mark.skipif(CHROME is None, reason='no Chromium or Chrome on the PATH')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
WAIT = 120_000 # ms: a busy machine is slow, and nothing here is a race

@pytest.fixture(scope='module')
def url(tmp_path_factory):
    "The page on a port of its own; tuning takes three iterations. One worker at a time: on two cores two servers and their browsers starve each other."
    with FileLock(tmp_path_factory.getbasetemp().parent/'browser.lock'),pytest.MonkeyPatch.context() as m:
        m.setitem(app.PRESETS, 'all-levels', dict(iters=3, batch=2, lr=1e-4))
        _,url,_ = app.launch(prevent_thread_lock=True, server_name='127.0.0.1', server_port=free_port(), quiet=True)   # two servers that look for one at the same moment may find the same
        yield url
        gr.close_all()

@pytest.fixture(scope='module')
def chrome():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args=FLAGS); yield b; b.close()

@pytest.fixture
def visitors(chrome, url):
    "Makes visitors: each a browser window without the others' cookies. Nobody may ask a host other than ours."
    contexts,hosts = [],set()
    def visit():
        c = chrome.new_context(viewport=dict(width=1300, height=1000)); c.set_default_timeout(WAIT); contexts.append(c)
        c.on('request', lambda r: hosts.add(r.url.split('/')[2]) if r.url.startswith('http') else None)
        page = c.new_page(); page.goto(url); page.get_by_text('Noise a bad photo').wait_for()
        return Visitor(page)
    yield visit
    for c in contexts: c.close()
    assert hosts=={url.split('/')[2]}

class Visitor:
    "What a visitor does with the first tab, or with another."
    def __init__(self, page): self.page,self.tab = page,page.get_by_role('tabpanel').filter(visible=True).first
    def open(self, tab):
        self.page.get_by_role('tab', name=tab, exact=True).click()
        self.tab = self.page.get_by_role('tabpanel').filter(visible=True).first
    def press(self, name): self.tab.get_by_role('button', name=name, exact=True).filter(visible=True).first.click()
    def upload(self, *files, nth=0): self.tab.locator('input[type=file]').nth(nth).set_input_files([str(f) for f in files])
    def upload_face(self, file): self.upload(file); self.tab.get_by_label('0: ', exact=False).first.wait_for()
    def set_K(self, K):
        box = self.tab.get_by_label('number input for K: noise steps', exact=False).first
        box.fill(str(K)); box.press('Enter')
    def toast(self, text): self.page.get_by_test_id('toast-body').filter(has_text=text).first.wait_for()
    def slide(self, pixels):
        box = self.tab.get_by_test_id('slider').bounding_box(); x,y = box['x']+box['width']/2,box['y']+box['height']/2; mouse = self.page.mouse
        mouse.move(x, y); mouse.down(); mouse.move(x+pixels, y, steps=5); mouse.up()
    def shown(self): return re.search(r'0px ([\d.]+)%\)', self.tab.get_by_test_id('imageslider-image').last.get_attribute('style'))[1]
    def result(self, folder, ending='.png'):
        "The file behind the download link."
        link = self.tab.locator(f'.handout a[download$="{ending}"]').last; link.wait_for()
        with self.page.expect_download() as d: link.click()
        to = folder/d.value.suggested_filename; d.value.save_as(to)
        return to

def photo(folder, name, brightness=1., side=128): return save_image(damaged_astronaut(side)[0]*brightness, folder/f'{name}.png')

@in_browser
def test_an_open_page_keeps_its_files_and_a_closed_one_does_not(chrome, tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'AGE', 6); monkeypatch.setattr(app, 'TICK', 1); monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path/'cache'))
    server = app.build(); _,url,_ = server.queue().launch(prevent_thread_lock=True, server_name='127.0.0.1', server_port=free_port(), quiet=True, css=app.CSS)
    page = chrome.new_page(); page.set_default_timeout(WAIT); page.goto(url); v = Visitor(page); there = lambda: [p for p in (tmp_path/'cache').rglob('*mine*') if p.is_file()]
    v.upload_face(photo(tmp_path, 'mine')); time.sleep(20); assert there()      # three times as old as files get
    v.set_K(8); v.press('Restore'); v.result(tmp_path/'page'); page.close()
    wait(lambda: not there()); server.close()

def wait(until, seconds=60):
    end = time.monotonic()+seconds
    while not until():
        assert time.monotonic()<end; time.sleep(.2)

@in_browser
def test_upload_restore_slide_download(visitors, tmp_path):
    v = visitors(); mine = photo(tmp_path, 'mine')
    v.upload_face(mine); v.set_K(8); v.press('Restore')
    file = v.result(tmp_path/'page')
    subprocess.run(['gen2res', 'restore', mine, '--K', '8', '-o', tmp_path/'cli'], check=True, capture_output=True)
    assert file.read_bytes()==(tmp_path/'cli'/'mine_restored.png').read_bytes()
    v.slide(-150); assert float(v.shown())<40                           # per cent of the picture that show "before"

@in_browser
def test_an_example_is_one_click(visitors, tmp_path):
    v = visitors(); v.page.locator('.gallery-item').nth(1).click(); v.tab.get_by_label('0: ', exact=False).first.wait_for()
    v.set_K(4); v.press('Restore'); assert v.result(tmp_path).name=='camera_restored.png'

@in_browser
def test_an_album_is_uploaded_tuned_and_restores(visitors, tmp_path):
    v = visitors(); v.open('With an album')
    album = [save_image(astronaut(96).roll(3*i, -1)*(1-.1*i), tmp_path/f'{i}.png') for i in range(3)]; (tmp_path/'no.png').write_text('#!/bin/sh')
    v.upload(*album, tmp_path/'no.png'); v.tab.get_by_text('3 of 4 can be used').wait_for(); v.tab.get_by_text('no.png: is not a picture').wait_for()
    v.press('Tune'); v.result(tmp_path/'person', '.safetensors')
    v.upload(photo(tmp_path, 'mine'), nth=-1); v.set_K(6); v.press('Restore')
    assert read_record(v.result(tmp_path/'page'))['K']==6

@in_browser
def test_cancel_frees_the_queue(visitors, tmp_path):
    long,other = visitors(),visitors()
    for v,K in ((long, 1000), (other, 4)): v.upload_face(photo(tmp_path, f'K{K}')); v.set_K(K)
    long.press('Restore'); long.tab.get_by_text('s left', exact=False).first.wait_for()
    other.press('Restore'); long.press('Cancel'); long.toast('Cancelled')
    assert read_record(other.result(tmp_path/'other'))['K']==4 and long.tab.locator('.handout a[download]').count()==0
    long.set_K(4); long.press('Restore'); assert read_record(long.result(tmp_path/'long'))['K']==4

@in_browser
def test_cancel_takes_what_waits_out_of_the_queue(visitors, tmp_path):
    long,waits = visitors(),visitors()
    for v,K in ((long, 1000), (waits, 4)): v.upload_face(photo(tmp_path, f'K{K}')); v.set_K(K)
    long.press('Restore'); long.tab.get_by_text('s left', exact=False).first.wait_for()
    waits.press('Restore'); waits.tab.get_by_text('queue', exact=False).first.wait_for(); waits.press('Cancel'); waits.toast('Cancelled')
    long.press('Cancel'); long.set_K(5); long.press('Restore'); assert read_record(long.result(tmp_path/'long'))['K']==5
    assert waits.tab.locator('.handout a[download]').count()==0          # it was before this in the queue

@in_browser
def test_two_at_once_get_their_own(faces64, visitors, tmp_path):
    both = {f'user{i}': (visitors(), photo(tmp_path, f'user{i}', 1-.3*i)) for i in range(2)}
    for v,p in both.values(): v.upload_face(p); v.set_K(6)
    for v,_ in both.values(): v.press('Restore')
    for name,(v,p) in both.items():
        file = v.result(tmp_path/'page'); assert file.name==f'{name}_restored.png'
        assert file.read_bytes()==restore_file(p, Restorer(faces64, K=6), tmp_path/'ours')[0].read_bytes()

@in_browser
def test_garbage_is_a_toast_and_the_page_goes_on(visitors, tmp_path):
    v = visitors(); script,huge = tmp_path/'script.png',tmp_path/'huge.png'; script.write_text('#!/bin/sh\nrm -rf /'); bomb(huge)
    for bad,said in ((script, 'not a picture'), (huge, 'too many pixels')):
        v.upload(bad); v.toast(said)
        v.tab.get_by_text('Drop Image Here').first.wait_for()               # it is taken away again
    assert 'Traceback' not in v.page.content()
    v.upload_face(photo(tmp_path, 'good')); v.set_K(4); v.press('Restore'); assert v.result(tmp_path/'page').stat().st_size

def test_twenty_in_the_queue_are_all_served(url, tmp_path):
    "Twenty clients at once, one worked for at a time; the second ten need no more memory than the first."
    import psutil
    from gradio_client import Client, handle_file
    memory,done = psutil.Process().memory_info,[]
    def client(i):
        c = Client(url, verbose=False, download_files=str(tmp_path/f'got{i}')); p = photo(tmp_path, f'client{i}', 1-.03*i, side=64)
        _,faces = c.predict(handle_file(p), api_name='/found')
        _,_,file = c.predict(handle_file(p), faces['value'], '', 'plain', 2, 1, 0, api_name='/run')
        done.append((i, Path(file), memory().rss))
    threads = [threading.Thread(target=client, args=(i,)) for i in range(20)]
    for t in threads: t.start()
    for t in threads: t.join(240)
    assert sorted(i for i,_,_ in done)==list(range(20)) and all(f.name==f'client{i}_restored.png' for i,f,_ in done)
    assert max(m for *_,m in done[10:])-max(m for *_,m in done[:10])<100e6
    assert len({f.read_bytes() for _,f,_ in done})==20
