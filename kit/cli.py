"""Command-line overrides, the choice of device and precision, and one-line errors.

A script lists its keys, each with a default and one line of meaning:

    keys = {'out_dir': ('out', 'folder for everything the run leaves behind'), 'lr': (3e-4, 'peak learning rate')}
    config = configure(keys)    # python train.py config/tiny.py --lr=1e-3

As in nanoGPT, config files and `--key=value` are read from left to right and the later one wins. Unlike
in nanoGPT, a config file is never executed, so reading a stranger's is safe: it may hold comments,
docstrings and `name = literal` lines only.
"""
import ast
import contextlib
import ctypes
import difflib
import errno
import math
import os
import sys
from types import SimpleNamespace

import torch

from kit.files import BadInput, BadItem, one_line, open_file


# ---------------------------------------------------------------------------------------------
# Configuration

LIMIT_CONFIG = 1 << 20  # bytes of a config file


def configure(keys, argv=None, usage=''):
    """Read the command line. `--help` or `-h` prints `usage` and every key, and exits.

    keys: {name: (default, one line of meaning)}, defaults being bool, int, float or str;
    argv: list of str, sys.argv[1:] unless given. Returns a namespace with every key, and with `given`: the
    set of the keys that a config file or the command line set. Raises BadInput.
    """
    argv = sys.argv[1:] if argv is None else argv
    on_command_line = keys | {'debug': (False, 'show the full traceback of an error')}
    if '--help' in argv or '-h' in argv:
        print_help(on_command_line, usage)
        sys.exit(0)
    overrides = {}
    for argument in argv:
        if argument.startswith('-'):
            name, equals, text = argument.lstrip('-').partition('=')
            check_known(name, on_command_line, argument)
            if not equals or not argument.startswith('--'):
                raise BadInput(f'{argument}: write --key=value, here --{name}={text or "..."}')
            overrides[name] = parse(text, on_command_line[name][0], argument)
        else:
            overrides.update(read_config_file(argument, keys))
    if 'debug' not in keys:
        overrides.pop('debug', None)  # it is for `command`, and no part of a run's configuration
    values = {name: default for name, (default, _) in keys.items()} | overrides
    return SimpleNamespace(**values, given=set(overrides))


def read_config_file(path, keys):
    """A Python file of `name = literal` lines -> {name: value}. Nothing in it is executed. Raises BadInput."""
    if not os.path.exists(path):
        hint = f' (write --{path} to set a key)' if '=' in path else ''
        raise BadInput(f'no such config file: {path}{hint}')
    try:
        with open_file(path, LIMIT_CONFIG) as f:
            source = f.read().decode('utf-8-sig')
        statements = ast.parse(source).body
    except BadInput:
        raise
    except UnicodeDecodeError as e:
        line = e.object[:e.start].count(b'\n') + 1
        raise BadInput(f'{path}:{line}: not UTF-8 text') from e
    except SyntaxError as e:
        raise BadInput(f'{path}:{e.lineno or 1}: {e.msg}') from e
    except (ValueError, RecursionError, MemoryError) as e:  # null bytes, or brackets nested without end
        raise BadInput(f'{path}:1: not a config file ({e or "nested too deeply"})') from e

    values = {}
    for statement in statements:
        where = f'{path}:{statement.lineno}'
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):
                continue  # a docstring
            case ast.Assign(targets=[ast.Name(id=name)]):
                check_known(name, keys, where)
            case _:
                raise BadInput(f'{where}: config files hold only "name = literal" lines and comments')
        try:
            value = ast.literal_eval(statement.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as e:
            raise BadInput(f'{where}: {name} must be a literal such as 3, 0.1, True or "text"; nothing is computed here') from e
        default = keys[name][0]
        if isinstance(value, str) != isinstance(default, str):
            raise BadInput(f'{where}: {name} must be {wanted(default)}, not {value!r}')
        try:
            text = value if isinstance(value, str) else repr(value)
        except ValueError as e:  # 0xfff..., thousands of digits long
            raise BadInput(f'{where}: {name} must be {wanted(default)} of a reasonable length') from e
        values[name] = parse(text, default, f'{where}: {name} = {text}')
    return values


def check_known(name, keys, where):
    """Raises BadInput with the nearest valid key, if `name` is not one."""
    if name not in keys:
        nearest = difflib.get_close_matches(name.replace('-', '_').lower(), keys, n=1, cutoff=0)
        raise BadInput(f'{where}: unknown key {name!r}' + (f'; did you mean {nearest[0]!r}?' if nearest else ''))


def wanted(default):
    """The values that may replace `default`, in words."""
    return {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'a text'}[type(default)]


def parse(text, default, where):
    """str -> a value of default's type. Raises BadInput."""
    kind = type(default)
    if kind is str and '\0' not in text:  # which no file name can hold
        return text  # verbatim: quotes, spaces and `=` are the user's own
    try:
        if kind is bool:
            return {'True': True, 'true': True, '1': True, 'False': False, 'false': False, '0': False}[text]
        if kind is int and '.' not in text and 'e' not in text.lower():
            return int(text)
        number = float(text)
        if math.isfinite(number) and (kind is float or number.is_integer()):  # 1e3 is a whole number, 1.5 is none
            return kind(number)
    except (KeyError, ValueError):
        pass
    raise BadInput(f'{where}: expected {wanted(default)}')


def check_range(config, low, high, *keys):
    """Raises BadInput where one of the keys is below `low` or above `high`."""
    for key in keys:
        value = getattr(config, key)
        if not low <= value <= high:
            raise BadInput(f'--{key}={value}: must be at ' + (f'least {low}' if value < low else f'most {high}'))


def print_help(keys, usage):
    if usage:
        print(usage.strip() + '\n')
    rows = [(f'--{name}={default}', meaning) for name, (default, meaning) in keys.items()]
    width = max(len(key) for key, _ in rows)
    for key, meaning in rows:
        print(f'  {key:<{width}}  {meaning}')


def keep_freed_memory():
    """Let glibc keep what is freed. By itself it gives much of it back to the system, and gets it anew page by page, each filled with zeros:
    6 to 12 % of a step of the vision stage. Where there is no glibc, nothing happens."""
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: only what is larger (and that is the most it can be) comes from the system directly
        libc.mallopt(-1, -1)        # M_TRIM_THRESHOLD: nothing is given back


def command(main):
    """Run a script's main(): a user's mistake ends it with one line on stderr and exit status 2.

    `--debug=True` on the command line shows the traceback instead.
    """
    keep_freed_memory()
    debug = {'--debug=True', '--debug=true', '--debug=1'} & set(sys.argv[1:])
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # a letter that the terminal lacks is no reason to fail
    try:
        main()
        sys.stdout.flush()  # a reader that has gone away is noticed here, not when Python shuts down
    except (BadInput, BadItem, OSError, KeyboardInterrupt) as e:
        if debug:
            raise
        if isinstance(e, KeyboardInterrupt):
            sys.exit(130)  # as a shell counts: 128 + SIGINT
        if isinstance(e, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush once more
            sys.exit(141)  # 128 + SIGPIPE
        if isinstance(e, OSError):
            if e.filename is None and e.errno != errno.ENOSPC:
                raise  # no file to name: more likely our mistake than the user's
            e = e.strerror if e.filename is None else f'{e.filename}: {e.strerror}'
        print(f'error: {one_line(e)}', file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as e:
        # torch says it in three ways: an error of its own, Python's, and on the CPU a RuntimeError like any other.
        full = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e) or 'not enough memory' in str(e)
        if debug or not full:
            raise
        print('error: out of memory: make batches, sizes or counts smaller (--debug=True shows where)', file=sys.stderr)
        sys.exit(2)
