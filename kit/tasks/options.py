"""Lists in the values of keys, as evaluate.py has them: '0,4,8'."""
from kit.files import BadInput


def listed(config, key, allowed):
    """'caption,question' -> ['caption', 'question']; nothing said -> all that are allowed. Raises
    BadInput."""
    text = getattr(config, key)
    names = [name.strip() for name in text.split(',')] if text else list(allowed)
    for name in names:
        if name not in allowed:
            raise BadInput(f'--{key}={text}: {name!r} is none of {", ".join(allowed)}')
    return names


def numbers(config, key, default, least=0, most=100):
    """'0,4' -> [0, 4]; nothing said -> the default. Raises BadInput."""
    text = getattr(config, key)
    try:
        found = [int(part) for part in text.split(',')] if text else list(default)
    except ValueError as e:
        raise BadInput(f'--{key}={text}: expected whole numbers with commas') from e
    for n in found:
        if not least <= n <= most:
            bound = f'least {least}' if n < least else f'most {most}'
            raise BadInput(f'--{key}={text}: must be at {bound}')
    return found


def templates(config):
    """'{}|a {}' -> ['{}', 'a {}']. Raises BadInput."""
    found = config.templates.split('|')
    if not all('{}' in t for t in found):
        raise BadInput(f'--templates={config.templates}: each must hold {{}}, the place of the name')
    return found
