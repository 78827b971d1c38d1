"""Headless Chromium, driven over its remote-debugging protocol with a plain socket: for tests of the page."""
import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'headless_shell')
PATIENCE = 60  # seconds


def find_browser():
    """The path of a Chromium that is installed, or None."""
    return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. Raises AssertionError where the page logs an error."""

    def __init__(self, folder, width=1200, height=900):
        arguments = ['--headless=new', '--remote-debugging-port=0', f'--user-data-dir={folder}',
                     '--disable-gpu', '--no-first-run', '--disable-background-networking',
                     '--disable-component-update',
                     '--disable-dev-shm-usage', '--hide-scrollbars', f'--window-size={width},{height}',
                     'about:blank']
        if hasattr(os, 'geteuid') and os.geteuid() == 0:
            arguments.insert(0, '--no-sandbox')  # Chromium refuses to run as root with it
        self.process = subprocess.Popen([find_browser(), *arguments], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.number, self.errors, self.requests = 0, [], []
        place = os.path.join(folder, 'DevToolsActivePort')
        wait_for(lambda: os.path.exists(place) and open(place).read().count('\n'))
        port = int(open(place).readline())
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list') as answer:
            tab = next(t for t in json.load(answer) if t['type'] == 'page')
        self.socket = socket.create_connection(('127.0.0.1', port), timeout=PATIENCE)
        path = tab['webSocketDebuggerUrl'].split(str(port), 1)[1]
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n'
                            'Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
                            f'Sec-WebSocket-Key: {key}\r\n\r\n'.encode())
        self.stream = self.socket.makefile('rb')
        while self.stream.readline() not in (b'\r\n', b''):
            pass
        for domain in ('Page', 'Runtime', 'DOM', 'Log', 'Network'):
            self(f'{domain}.enable')

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def __call__(self, method, **parameters):
        """One command of the protocol -> its result"""
        self.number += 1
        message = json.dumps({'id': self.number, 'method': method, 'params': parameters}).encode()
        # A text frame, masked with zeros, its length in eight bytes (127): RFC 6455, section 5.2
        self.socket.sendall(struct.pack('!BBQI', 0x81, 0x80 | 127, len(message), 0) + message)
        while True:
            answer = json.loads(self.message())
            self.note(answer)
            if answer.get('id') == self.number:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']

    def message(self):
        """The next message: one frame, or several."""
        content = b''
        while True:
            first, length = self.stream.read(2)
            length &= 127
            if length >= 126:
                length = int.from_bytes(self.stream.read(2 if length == 126 else 8), 'big')
            content += self.stream.read(length)
            if first & 0x80:
                return content

    def note(self, message):
        said = message.get('params', {})
        if message.get('method') == 'Network.requestWillBeSent':
            self.requests.append(said['request']['url'])
        if message.get('method') == 'Runtime.exceptionThrown':
            self.errors.append(said['exceptionDetails'].get('exception', {}).get('description', 'exception'))
        if message.get('method') == 'Log.entryAdded' and said['entry']['level'] == 'error':
            self.errors.append(said['entry']['text'] + ' ' + said['entry'].get('url', ''))

    def run(self, script):
        """The value of a JavaScript expression."""
        answer = self('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True,
                      userGesture=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def until(self, script):
        """Waits until the expression is true -> its value"""
        return wait_for(lambda: self.run(script), script)

    def go(self, url):
        self('Page.navigate', url=url)
        self.until('document.readyState === "complete"')

    def click(self, selector):
        """A click of the mouse on its middle."""
        x, y = self.middle(selector)
        for kind in ('mousePressed', 'mouseReleased'):
            self('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def middle(self, selector):
        return self.run(f'(() => {{ const e = document.querySelector({json.dumps(selector)}); '
                        'e.scrollIntoView({block: "center"}); const r = e.getBoundingClientRect(); '
                        'return [r.x + r.width / 2, r.y + r.height / 2]; })()')

    def type(self, selector, text):
        """In place of what stands there."""
        self.run(f'(() => {{ const e = document.querySelector({json.dumps(selector)}); '
                 'e.focus(); e.select(); })()')
        self('Input.insertText', text=text)

    def key(self, key, code=None, modifiers=0):
        for kind in ('keyDown', 'keyUp'):
            self('Input.dispatchKeyEvent', type=kind, key=key, code=key, modifiers=modifiers,
                 windowsVirtualKeyCode=code or 0, **({'text': '\r'} if key == 'Enter' else {}))

    def drop(self, selector, files):
        """Files of this machine, dragged onto an element."""
        x, y = self.middle(selector)
        data = {'items': [], 'files': [str(f) for f in files], 'dragOperationsMask': 1}
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self('Input.dispatchDragEvent', type=kind, x=x, y=y, data=data)

    def screen(self, width, height, scale=1, dark=False):
        self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=scale,
             mobile=False)
        self('Emulation.setEmulatedMedia',
             features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

    def picture(self, whole=True):
        """-> PNG bytes of the page"""
        return base64.b64decode(self('Page.captureScreenshot', captureBeyondViewport=whole)['data'])


def wait_for(check, what=''):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.05)
    raise AssertionError(f'waited in vain: {what}')
