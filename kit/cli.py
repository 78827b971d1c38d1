"""Command-line overrides and one-line errors.

A script lists its keys, each with a default and one line of meaning:

    keys = {'out_dir': ('out', 'folder for what the run writes'), 'lr': (3e-4, 'peak learning rate')}
    config = configure(keys)    # python train.py config/tiny.py --lr=1e-3

As in nanoGPT, config files and `--key=value` are read from left to right and the later one wins. Unlike in
nanoGPT, a config file is never executed, so reading a stranger's is safe. It may hold only comments,
docstrings and `name = literal` lines.

Keys that are seldom needed are grouped into one key, whose default is a table of them:

    keys['batch'] = ({'batch_m3w': (24, 'sequences of m3w'), 'batch_vtp': (4, 'of vtp')}, 'sequences a step')
    config = configure(keys)    # --batch='m3w=12 vtp=2' sets config.batch_m3w and config.batch_vtp
"""
import ast
import contextlib
import ctypes
import difflib
import errno
import math
import os
import shlex
import sys
import textwrap
from types import SimpleNamespace

import torch

from kit.files import BadInput, BadItem, one_line, open_file


# ---------------------------------------------------------------------------------------------
# Configuration

LIMIT_CONFIG = 1 << 20  # bytes of a config file


def configure(keys, argv=None, usage='', groups=None, gone=None):
    """Read the command line. `--help` or `-h` prints `usage` and every key, and exits.

    keys:   {name: (default, one line of meaning)}; a default is a bool, int, float or str, or a table of keys
    argv:   list of str, sys.argv[1:] unless given
    groups: {title: names of the keys}, for --help
    gone:   {name of a removed key: what to do instead}
    Returns a namespace with every key, those of tables by their own names, and with `given`, the set of keys
    that a config file or the command line has set. Raises BadInput.
    """
    argv = sys.argv[1:] if argv is None else argv
    on_command_line = keys | {'debug': (False, 'show the full traceback of an error')}
    if '--help' in argv or '-h' in argv:
        print_help(on_command_line, usage, groups)
        sys.exit(0)
    overrides = {}
    for argument in argv:
        if argument.startswith('-'):
            name, equals, text = argument.lstrip('-').partition('=')
            check_known(name, on_command_line, argument, gone)
            if not equals or not argument.startswith('--'):
                raise BadInput(f'{argument}: write --key=value, here --{name}={text or "..."}')
            overrides |= parse_key(name, text, on_command_line, argument)
        else:
            overrides |= read_config_file(argument, keys, gone)
    if 'debug' not in keys:
        overrides.pop('debug', None)  # it is for `command`, not part of a run's configuration
    values = {name: default for name, (default, _) in flat(keys).items()} | overrides
    return SimpleNamespace(**values, given=set(overrides))


def flat(keys):
    """The same keys, each table replaced by the keys in it."""
    out = {}
    for name, (default, meaning) in keys.items():
        out |= default if isinstance(default, dict) else {name: (default, meaning)}
    return out


def short(name, table):
    """How a key of a table is spelled on the command line: batch_m3w of --batch is m3w."""
    return name.removeprefix(table + '_')


def spell(values, keys):
    """{name: value}, those of tables by their own names -> the arguments that give them, ['--key=value']."""
    spelled = [f'--{name}={value}' for name, value in values.items() if name in keys]
    for table, (default, _) in keys.items():
        inside = [name for name in values if isinstance(default, dict) and name in default]
        text = ' '.join(f'{short(name, table)}={shlex.quote(str(values[name]))}' for name in inside)
        spelled += [f'--{table}={text}'] if inside else []
    return spelled


def parse_key(name, text, keys, where):
    """The text of one key -> {name: value}. The text of a table, such as 'm3w=12 vtp=2', may give several.
    Raises BadInput."""
    default = keys[name][0]
    if not isinstance(default, dict):
        return {name: parse(text, default, where)}
    names, values = {short(inside, name): inside for inside in default}, {}
    try:
        entries = shlex.split(text)
    except ValueError as e:  # an unclosed quotation mark
        raise BadInput(f'{where}: {e}') from e
    for entry in entries:
        inside, equals, value = entry.partition('=')
        inside = short(inside, name)
        if not equals or inside not in names:
            nearest = difflib.get_close_matches(inside, names, n=1, cutoff=0)[0]
            like = f'{nearest}={default[names[nearest]][0]}'
            raise BadInput(f'{where}: {entry!r} is no name=value of --{name}; one is {like}')
        values[names[inside]] = parse(value, default[names[inside]][0], f'{where}: {inside}')
    return values


def read_config_file(path, keys, gone=None):
    """A Python file of `name = literal` lines -> {name: value}; nothing is executed. Raises BadInput."""
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
                check_known(name, keys, where, gone)
            case _:
                raise BadInput(f'{where}: config files hold only "name = literal" lines and comments')
        try:
            value = ast.literal_eval(statement.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as e:
            raise BadInput(f'{where}: {name} must be a literal such as 3, 0.1, True or "text"; '
                           'nothing is computed here') from e
        default = keys[name][0]
        if isinstance(value, str) != isinstance(default, (str, dict)):
            raise BadInput(f'{where}: {name} must be {wanted(default)}, not {value!r}')
        try:
            text = value if isinstance(value, str) else repr(value)
        except ValueError as e:  # 0xfff..., thousands of digits long
            raise BadInput(f'{where}: {name} must be {wanted(default)} of a reasonable length') from e
        values |= parse_key(name, text, keys, f'{where}: {name} = {text}')
    return values


def check_known(name, keys, where, gone=None):
    """Raises BadInput with the nearest valid key, or with what replaced it, if `name` is not one."""
    if name in keys:
        return
    for table, (default, _) in keys.items():
        if isinstance(default, dict) and name in default:
            raise BadInput(f'{where}: {name} is part of --{table}: write --{table}={short(name, table)}=...')
    if name in (gone or {}):
        raise BadInput(f'{where}: {name} is gone: {gone[name]}')
    nearest = difflib.get_close_matches(name.replace('-', '_').lower(), keys, n=1, cutoff=0)
    raise BadInput(f'{where}: unknown key {name!r}' + (f'; did you mean {nearest[0]!r}?' if nearest else ''))


def wanted(default):
    """The values that may replace `default`, in words."""
    return {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'a text',
            dict: 'a text, "name=value name=value"'}[type(default)]


def parse(text, default, where):
    """str -> a value of default's type. Raises BadInput."""
    kind = type(default)
    if kind is str and '\0' not in text:  # no file name can hold a \0
        # Verbatim: quotes, spaces and `=` are the user's own. Only ~ is replaced; after a `=`, no shell does.
        return os.path.expanduser(text) if text == '~' or text.startswith('~/') else text
    try:
        if kind is bool:
            return {'True': True, 'true': True, '1': True, 'False': False, 'false': False, '0': False}[text]
        if kind is int and '.' not in text and 'e' not in text.lower():
            return int(text)
        number = float(text)
        if math.isfinite(number) and (kind is float or number.is_integer()):  # 1e3 is a whole number
            return kind(number)
    except (KeyError, ValueError):
        pass
    raise BadInput(f'{where}: expected {wanted(default)}')


def check_range(config, low, high, *names, keys=None):
    """Raises BadInput if the value of one of these keys is below `low` or above `high`. keys: all of them,
    for the spelling of those in tables."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            said = ' '.join(spell({name: value}, keys)) if keys else f'--{name}={value}'
            raise BadInput(f'{said}: must be at ' + (f'least {low}' if value < low else f'most {high}'))


def print_help(keys, usage, groups=None):
    """Print every key with its default and its meaning, in groups. A table is followed by its keys."""
    if usage:
        print(usage.strip())
    grouped = {name for names in (groups or {}).values() for name in names}
    rest = [name for name in keys if name not in grouped]
    for title, names in [*(groups or {}).items(), ('', rest)]:
        print(f'\n{title}' if title else '')
        for name in names:
            default, meaning = keys[name]
            table = default if isinstance(default, dict) else {}
            print_key(f'--{name}=' + ("'name=value ...'" if table else str(default)), meaning, 2)
            for inside, (value, said) in table.items():
                print_key(f'{short(inside, name)}={value}', said, 6)


def print_key(spelled, meaning, indent, column=34, width=110):
    """Print one key and its meaning, in two columns."""
    first = f'{" " * indent}{spelled}'
    if len(first) > column - 2:  # too long for its column: the meaning starts on the next line
        print(first)
        first = ''
    for line in textwrap.wrap(meaning, width - column):
        print(f'{first:<{column}}{line}')
        first = ''


# ---------------------------------------------------------------------------------------------
# Running a script


def keep_freed_memory():
    """Let glibc keep freed memory. By default it returns much of it to the system and gets it back page by
    page, each filled with zeros, which takes up to 12 % of a step of the vision stage. Without glibc nothing
    happens."""
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its maximum: smaller blocks are kept
        libc.mallopt(-1, -1)        # M_TRIM_THRESHOLD: nothing is returned


def command(main):
    """Run a script's main(). A user's mistake ends it with one line on stderr and exit status 2;
    `--debug=True` on the command line shows the traceback instead."""
    keep_freed_memory()
    debug = {'--debug=True', '--debug=true', '--debug=1'} & set(sys.argv[1:])
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # for letters that the terminal lacks
    try:
        main()
        sys.stdout.flush()  # notice here, not when Python shuts down, that a reader has gone away
    except (BadInput, BadItem, OSError, KeyboardInterrupt) as e:
        if debug:
            raise
        if isinstance(e, KeyboardInterrupt):
            sys.exit(130)  # as a shell counts: 128 + SIGINT
        if isinstance(e, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
            sys.exit(141)  # 128 + SIGPIPE
        if isinstance(e, OSError):
            if e.filename is None and e.errno != errno.ENOSPC:
                raise  # no file to name: more likely our mistake than the user's
            e = e.strerror if e.filename is None else f'{e.filename}: {e.strerror}'
        print(f'error: {one_line(e)}', file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as e:
        # torch reports a full memory by an error of its own, by Python's, or on the CPU by a RuntimeError.
        full = isinstance(e, (MemoryError, torch.OutOfMemoryError))
        full = full or "can't allocate memory" in str(e) or 'not enough memory' in str(e)
        if debug or not full:
            raise
        print('error: out of memory: make batches, sizes or counts smaller (--debug=True shows where)',
              file=sys.stderr)
        sys.exit(2)
