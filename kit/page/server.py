"""`python sample.py --page=True`: one page, and the routes that it asks, from this computer to itself.

    browser ──► Handler (a thread of each connection: checks, limits)
                   │  Job
                   ▼
                Worker (one thread: decodes pictures, runs the model, one job after the other) ──► Desk

*Who may ask.* Any web page can make a browser send requests to 127.0.0.1. So a request must name this server
as its Host (another name that leads here is an attack on the name service), and where it has an Origin, that
must be this server's own. Nothing of a request is ever used as a path: three files are read when the server
starts, and pictures come as bytes.
"""
import contextlib
import ipaddress
import json
import os
import queue
import select
import socket
import socketserver
import sys
import threading
import time
import traceback
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from kit.files import BadInput, BadItem, one_line
from kit.page.desk import Desk, LIMIT_PICTURE, LIMIT_PROMPT, Missing

FOLDER = os.path.dirname(os.path.abspath(__file__))
FILES = {'/': ('index.html', 'text/html'), '/page.css': ('page.css', 'text/css'),
         '/page.js': ('page.js', 'text/javascript')}
LIMIT_JSON = 1 << 20       # bytes of a request that is no file
MOST_CONNECTIONS = 32
MOST_WAITING = 8           # jobs; who comes after them is told to come again
PATIENCE = 30              # seconds for a client to send or to take the next bytes; and twice that for all

# What a request asks for -> (method of Desk, of a file's bytes the most there may be, type of the answer).
JSON, LINES = 'application/json', 'application/x-ndjson'
ROUTES = {
    '/start': ('start', 0, JSON), '/draw': ('draw', 0, JSON), '/parse': ('parse', 0, JSON),
    '/ask': ('ask', 0, LINES), '/lost': ('lost', 0, JSON),
    '/sheet': ('sheet', 0, 'image/png'), '/save': ('save', 0, 'application/zip'),
    '/picture': ('picture', LIMIT_PICTURE, JSON), '/load': ('load', LIMIT_PROMPT, JSON),
}
# Keys of sample.py that say something about one prompt, which here the page says.
ELSEWHERE = {'prompt', 'prompt_file', 'rices', 'images', 'chat', 'json', 'attention', 'explain', 'picture',
             'num_samples'}
HEADERS = {  # of every answer: nothing from elsewhere, nothing of this in another page, no script but page.js
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'X-Frame-Options': 'DENY', 'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}


class Refused(Exception):
    """A request that is not answered: status, and why in words."""

    def __init__(self, status, message):
        super().__init__(status, message)
        self.status, self.message = status, message


# ---------------------------------------------------------------------------------------------
# One thing at a time


class Stopped(Exception):
    """Whoever wanted to know has gone."""


class Job:
    """work(tell) -> result. events: what it tells, at last ('result', …) or ('error', …)."""

    def __init__(self, work):
        self.work, self.events, self.stopped = work, queue.Queue(), threading.Event()

    def tell(self, event):
        if self.stopped.is_set():
            raise Stopped
        self.events.put(('event', event))

    def run(self):
        if self.stopped.is_set():
            return
        try:
            self.events.put(('result', self.work(self.tell)))
        except Exception as e:
            self.events.put(('error', e))


class Worker:
    """One thread that does all that takes long. A model has one memory, and pictures are decoded in one
    thread only (kit.sources.decode)."""

    def __init__(self):
        self.jobs = queue.Queue(MOST_WAITING)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            self.jobs.get().run()

    def begin(self, work):
        """-> Job. Raises Refused where too many are waiting."""
        job = Job(work)
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            raise Refused(503, 'too many are waiting; try again in a moment') from None
        return job


# ---------------------------------------------------------------------------------------------
# HTTP


class Server(ThreadingHTTPServer):
    """host, port: where to listen; port 0 takes a free one. The desk's routes are asked by any number of
    clients, and done one at a time."""
    daemon_threads = True
    allow_reuse_address = os.name != 'nt'  # on Windows it would let another program in beside this one

    def __init__(self, host, port, desk):
        self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.host, self.port, self.desk, self.worker = host, self.server_address[1], desk, Worker()
        self.free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.files = {}
        for path, (name, kind) in FILES.items():
            with open(os.path.join(FOLDER, name), 'rb') as f:
                self.files[path] = f.read(), kind

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask the name service who we are
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self):
        return f'http://{f"[{self.host}]" if ":" in self.host else self.host}:{self.port}/'

    def is_host(self, host):
        """Is this Host ours? Listening on loopback: one of its names. Else any address, and the name that
        was given, but no other name: that may have been led here."""
        name, _, port = host.rpartition(':')
        if port != str(self.port):
            name, port = host, '80'
        name = name.strip('[]').lower()
        if port != str(self.port):
            return False
        if name in ('localhost', '127.0.0.1', '::1', self.host.lower()):
            return True
        return not is_loopback(self.host) and is_address(name)

    def process_request(self, request, client_address):
        if not self.free.acquire(blocking=False):
            return self.shutdown_request(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is no error of ours
            super().handle_error(request, client_address)


def is_address(name):
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


def is_loopback(host):
    return host == 'localhost' or is_address(host) and ipaddress.ip_address(host).is_loopback


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    timeout = PATIENCE
    server_version, sys_version = 'nanoFlamingo', ''

    def do_GET(self):
        with self.refusals():
            self.check_sender()
            if self.path not in self.server.files:
                raise Refused(405 if self.path in ROUTES else 404, 'there is nothing here')
            content, kind = self.server.files[self.path]
            self.reply(200, f'{kind}; charset=utf-8', content)

    def do_POST(self):
        with self.refusals():
            self.check_sender()
            path, _, name = self.path.partition('?name=')
            if path not in ROUTES:
                raise Refused(404, 'there is nothing here')
            method, limit, kind = ROUTES[path]
            do = getattr(self.server.desk, method)
            if limit:
                content, name = self.body(limit, 'application/octet-stream'), unquote(name, errors='replace')
                job = self.server.worker.begin(lambda tell: do(content, name, tell))
            else:
                request = read_json(self.body(LIMIT_JSON, JSON))
                job = self.server.worker.begin(lambda tell: do(request, tell))
            if kind == LINES:
                return self.stream(job)
            what, result = self.wait(job)
            if what == 'error':
                return self.reply(*said_of(result))
            self.reply(200, kind, as_json(result) if kind == JSON else result)

    # -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def refusals(self):
        try:
            yield
        except Refused as e:
            self.close_connection = True
            self.reply(e.status, JSON, as_json({'error': e.message}))
            self.drain()

    def drain(self, most=4 << 20, seconds=1):
        """Read some of what a refused client is still sending: closed at once, it would not hear why."""
        end = time.monotonic() + seconds
        self.connection.settimeout(seconds)
        with contextlib.suppress(OSError):
            while most > 0 and time.monotonic() < end and (part := self.rfile.read1(1 << 16)):
                most -= len(part)

    def check_sender(self):
        """Raises Refused where the request was not meant for this server, or comes from another's page."""
        hosts = self.headers.get_all('Host') or []
        if len(hosts) != 1 or not self.server.is_host(hosts[0]):
            raise Refused(403, f'this is {self.server.url} and answers to no other name')
        origins = self.headers.get_all('Origin') or []
        if any(origin != f'http://{hosts[0]}' for origin in origins):
            raise Refused(403, 'a page from elsewhere cannot ask here')
        site = self.headers.get('Sec-Fetch-Site', 'none')  # what browsers say themselves
        if self.command == 'POST' and site not in ('same-origin', 'none'):
            raise Refused(403, 'a page from elsewhere cannot ask here')

    def body(self, limit, kind):
        """The bytes of a request. Raises Refused."""
        length = self.headers.get('Content-Length', '')
        if 'Transfer-Encoding' in self.headers or not (length.isascii() and length.isdigit()):
            raise Refused(411, 'its length must be said')
        if self.headers.get_content_type() != kind:  # no form of another page can have these types
            raise Refused(415, f'must be {kind}')
        if len(length) > 12 or int(length) > limit:
            raise Refused(413, f'more than {limit >> 20} MiB')
        content, end = bytearray(), time.monotonic() + 2 * PATIENCE
        while len(content) < int(length):
            part = self.rfile.read1(min(int(length) - len(content), 1 << 16))
            if not part or time.monotonic() > end:
                raise Refused(408, 'it ended before its end, or took too long')
            content += part
        return bytes(content)

    def reply(self, status, kind, content):
        self.send_response(status)
        for name, value in {**HEADERS, 'Content-Type': kind, 'Content-Length': len(content)}.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def next(self, job):
        """The next event of a job. Raises ConnectionError where the client goes away meanwhile."""
        while True:
            try:
                return job.events.get(timeout=0.1)
            except queue.Empty:
                if gone(self.connection):
                    raise ConnectionError('the client has gone') from None

    def wait(self, job):
        """-> ('result', …) or ('error', …); what is told on the way is not sent."""
        try:
            while True:
                what, value = self.next(job)
                if what != 'event':
                    return what, value
        finally:
            job.stopped.set()

    def stream(self, job):
        """Each event as a line of JSON, at once."""
        self.send_response(200)
        for name, value in {**HEADERS, 'Content-Type': LINES, 'Transfer-Encoding': 'chunked'}.items():
            self.send_header(name, value)
        self.end_headers()
        self.line({'doing': 'waiting its turn'})
        try:
            what = 'event'
            while what == 'event':
                what, value = self.next(job)
                self.line(json.loads(said_of(value)[2]) if what == 'error' else value)
            self.wfile.write(b'0\r\n\r\n')
        finally:
            job.stopped.set()

    def line(self, event):
        content = as_json(event) + b'\n'
        self.wfile.write(b'%x\r\n%s\r\n' % (len(content), content))

    def send_error(self, code, message=None, explain=None):
        """What http.server itself refuses: the same form, and nothing of the request said back."""
        self.close_connection = True
        self.reply(code, JSON, as_json({'error': self.responses.get(code, ['refused'])[0]}))

    def log_message(self, *args):
        pass  # the terminal is the user's


def gone(connection):
    """Has the other side closed it?"""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b''
    except (OSError, ValueError):
        return True


def read_json(content):
    """-> dict. Raises Refused."""
    try:
        request = json.loads(content)
        json.dumps(request, ensure_ascii=False).encode()  # half a letter (a lone surrogate) is no text
    except (ValueError, RecursionError):
        raise Refused(400, 'not JSON') from None
    if not isinstance(request, dict):
        raise Refused(400, 'not a JSON object')
    return request


def as_json(value):
    return json.dumps(value).encode()


def said_of(error):
    """An exception -> status, type and body: a user's mistake in words, with the picture that it is about."""
    if isinstance(error, Missing):
        return 409, JSON, as_json({'error': str(error), 'missing': error.names})
    if isinstance(error, BadItem):
        said = error.kind + (f' ({error.message})' if error.message else '')
        return 400, JSON, as_json({'error': one_line(said), 'picture': error.where})
    if isinstance(error, BadInput):
        return 400, JSON, as_json({'error': one_line(error)})
    traceback.print_exception(error)
    return 500, JSON, as_json({'error': 'something went wrong; the terminal says what'})


# ---------------------------------------------------------------------------------------------


def serve(asker, config, checkpoint):
    """Serve the page until Ctrl-C. Raises BadInput where the port is taken.

    config: sample.py's keys, of which `port` and `host` say where.
    """
    for name in ELSEWHERE & config.given:
        raise BadInput(f'--{name}: not with --page=True, where prompts are made and asked on the page')
    try:
        server = Server(config.host, config.port, Desk(asker, config, os.path.basename(checkpoint)))
    except (OSError, OverflowError, UnicodeError) as e:
        raise BadInput(f'--host={config.host} --port={config.port}: cannot listen there ({e}); '
                       '--port=0 takes a free one') from e
    if not is_loopback(config.host):
        print(f'whoever can reach {config.host} can use this page', file=sys.stderr)
    print(f'{server.url}   (Ctrl-C ends it)', flush=True)
    if sys.platform in ('darwin', 'win32') or {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ):
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    with server:
        server.serve_forever()
