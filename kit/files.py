"""The two kinds of error, and files that are never half-written."""
import contextlib
import errno
import json
import os
import re
import stat


# ---------------------------------------------------------------------------------------------
# Two kinds of error


class BadInput(ValueError):
    """A user's mistake: the message is one clear line that says what is wrong, and where."""


class BadItem(Exception):
    """One damaged item of a data set. Readers count these by `kind` and go on.

    kind: a word or two ('truncated', 'missing', 'empty caption'); where: file and line; message: details.
    """

    def __init__(self, kind, where, message=''):
        super().__init__(kind, where, message)  # all three: unpickling calls the class with them
        self.kind, self.where, self.message = kind, where, message

    def __str__(self):
        return f'{self.where}: {self.kind}' + (f' ({self.message})' if self.message else '')


def open_file(path, limit):
    """Open a file that the user names, for reading bytes. limit: the most bytes it may have.

    Raises BadInput if it is missing, larger than the limit, or not a file but a folder, pipe or device (which
    may never end).
    """
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BadInput(f'{path}: not a file')
        if info.st_size > limit:
            raise BadInput(f'{path}: {info.st_size} bytes are more than {limit}')
        return open(path, 'rb')
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e


def read_text(path, limit):
    """The text of a UTF-8 file of at most `limit` bytes. Raises BadInput."""
    with open_file(path, limit) as f:
        try:
            return f.read().decode('utf-8-sig')
        except UnicodeDecodeError as e:
            raise BadInput(f'{path}: not UTF-8 at byte {e.start}') from e


def read_json(path, limit):
    """The content of a JSON file of at most `limit` bytes, read whole: COCO's training captions, 90 MB, are
    0.7 GB while they are read. Raises BadInput."""
    with open_file(path, limit) as f:
        try:
            return json.loads(f.read().decode('utf-8-sig'))
        except (ValueError, RecursionError) as e:  # UnicodeDecodeError is a ValueError
            raise BadInput(f'{path}: not JSON: {e}') from e


# ---------------------------------------------------------------------------------------------
# Messages


def one_line(text):
    """str -> the same with newlines and other control characters written out (\\n): one line."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None
NO_LINKS = getattr(os, 'O_NOFOLLOW', 0)


# ---------------------------------------------------------------------------------------------
# Whole files


@contextlib.contextmanager
def whole_file(path, mode='wb', encoding=None):
    """Write a file that appears under its name only when it is whole. Until then the old one stays.

    mode: 'wb', or 'w' for text (UTF-8 unless `encoding` is given). Yields the open file. Raises BadInput if
    it cannot be written: no such folder, read-only, disk full, or something there that is not a file.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}.tmp-{os.getpid()}')  # same folder: a rename cannot cross disks
    if 'b' not in mode:
        encoding = encoding or 'utf-8'
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(errno.EEXIST, 'not a file')  # a rename to /dev/null would replace the device
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)  # left by a killed run with our process id
        with open(temporary, mode.replace('w', 'x'), encoding=encoding) as f:
            lock(f)  # shows `clean` that it is being written
            yield f
            f.flush()
            os.fsync(f.fileno())  # the bytes reach the disk before the name does, even if the power fails
        os.replace(temporary, path)
    except OSError as e:
        if e.filename not in (None, temporary):
            raise  # about another file, which the caller was using
        raise BadInput(f'{path}: cannot be written ({e.strerror or e})') from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # nothing to remove after a success
    with contextlib.suppress(OSError):  # on systems that cannot open a folder there is nothing to do
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name reaches the disk too
        finally:
            os.close(descriptor)


def lock(f):
    """Lock an open file for this process until it is closed or the process ends, however it ends. Returns
    whether it was free."""
    try:
        if fcntl:
            # lockf, not flock: worker processes inherit a flock, and they outlive a killed run for seconds.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks
    return True


def clean(folder):
    """Delete what killed runs left half-written in `folder`. What another process is writing now stays."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if re.fullmatch(r'\..+\.tmp-\d+', name) and os.path.isfile(path):
            with contextlib.suppress(OSError):  # just finished and renamed, or not ours to delete
                with open(path, 'rb+') as f:
                    unused = lock(f)
                if unused:
                    os.remove(path)


@contextlib.contextmanager
def only_run(out_dir):
    """Lock `out_dir` (made if needed) for this process, and clean it. Raises BadInput if another process has
    locked it.

    The system drops the lock when the process ends, however it ends, so a killed run never blocks the next.
    """
    try:
        os.makedirs(out_dir, exist_ok=True)
        # Not through a link: in a stranger's folder it could lead to any file, which would then be emptied.
        f = open(os.path.join(out_dir, '.lock'), 'ab+', buffering=0,
                 opener=lambda path, flags: os.open(path, flags | NO_LINKS, 0o666))
    except OSError as e:
        raise BadInput(f'{out_dir}: {e.strerror}') from e
    with f:
        if not lock(f):
            f.seek(0)
            pid = f.read(20).decode(errors='replace').strip() or 'unknown'
            raise BadInput(f'{out_dir} is in use by another run (pid {pid})')
        try:
            f.truncate(0)
            f.write(b'%d' % os.getpid())
        except OSError as e:
            raise BadInput(f'{out_dir}: cannot be written ({e.strerror})') from e
        clean(out_dir)
        yield
