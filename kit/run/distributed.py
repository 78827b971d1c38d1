"""Many processes, one training: all that train.py needs of torch.distributed, in plain functions.

    torchrun --standalone --nproc_per_node=8 train.py                each process holds the whole model (DDP)
    torchrun --standalone --nproc_per_node=8 train.py --shard=True   each holds 1/8 of every matrix (FSDP2)

Each of the W processes (its number is its *rank*) takes its own samples of every batch, and gradients are
averaged. A step is therefore the one that a single process would take with the whole batch. With one process,
every function here does nothing or the obvious thing.
"""
import contextlib
import functools
import os
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import distribute_tensor, DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from kit.files import BadInput
from kit.weights import checkpoint


# ---------------------------------------------------------------------------------------------
# Who we are


def rank():
    """Number of this process, 0 … W-1. Rank 0 writes the files and prints."""
    return int(os.environ['RANK']) if 'TORCHELASTIC_RUN_ID' in os.environ else 0


def world():
    """W, the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ['WORLD_SIZE']) if 'TORCHELASTIC_RUN_ID' in os.environ else 1


def begin(device, shard):
    """Join the other processes -> this one's device: for cuda, one of cuda:0, cuda:1, ... each.

    Raises BadInput for shard without torchrun, or for more processes than cards.
    """
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        if shard:
            raise BadInput('--shard=True splits the model over processes; start them with: '
                           'torchrun --standalone --nproc_per_node=N train.py ...')
        return device
    kind = torch.device(device).type
    if kind == 'cuda':
        local = int(os.environ['LOCAL_RANK'])
        if local >= torch.cuda.device_count():
            raise BadInput(f'torchrun started {os.environ["LOCAL_WORLD_SIZE"]} processes here, '
                           f'but there are {torch.cuda.device_count()} GPUs')
        device = f'cuda:{local}'
        torch.cuda.set_device(local)
    elif kind != 'cpu':
        raise BadInput(f'--device={device}: torchrun works with cuda and cpu')
    if rank():  # one set of progress bars is enough
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
    if not dist.is_initialized():
        dist.init_process_group('nccl' if kind == 'cuda' else 'gloo')
    return device


def end():
    if dist.is_initialized():
        barrier()  # together, so that no process closes a connection that another still uses
        dist.destroy_process_group()


def barrier():
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


# ---------------------------------------------------------------------------------------------
# The data of each rank


def mine(n, key, n_part=1):
    """The samples of a batch of n that are this rank's -> range. Raises BadInput if n cannot be divided
    evenly. key: the one that sets n, for the message."""
    w = world()
    if n % (w * n_part):
        parts = f' times {n_part} micro-batches' if n_part > 1 else ''
        typed = key.replace('batch_', 'batch=')  # --batch=m3w=24 is config.batch_m3w
        raise BadInput(f'--{typed}={n} cannot be divided by {w} process{"es" if w > 1 else ""}{parts}')
    return range(rank() * n // w, (rank() + 1) * n // w)


class Mine:
    """A random generator for this rank's samples: it draws for a whole batch of n and cuts out `mine`, a
    range."""

    def __init__(self, rng, n, mine):
        self.rng, self.n, self.mine = rng, n, slice(mine.start, mine.stop)

    def uniform(self, low, high, shape):
        return self.rng.uniform(low, high, (self.n, *shape[1:]))[self.mine]


# ---------------------------------------------------------------------------------------------
# Numbers on which all ranks must agree


def total(*numbers):
    """Sum over ranks of each number -> list of floats."""
    return all_reduce(numbers, dist.ReduceOp.SUM)


def mean(*numbers):
    """Mean over ranks of each number -> list of floats."""
    return [x / world() for x in total(*numbers)]


def mean_of(numbers):
    """{name: number} -> the same, each a mean over ranks, which have the same names, in any order."""
    means = dict(zip(sorted(numbers), mean(*(numbers[name] for name in sorted(numbers)))))
    return {name: means[name] for name in numbers}


def largest(number):
    """The largest int that any rank has."""
    return int(all_reduce([number], dist.ReduceOp.MAX)[0])


def all_reduce(numbers, operation):
    if world() == 1:
        return list(numbers)
    device = torch.device('cuda', torch.cuda.current_device()) if dist.get_backend() == 'nccl' else 'cpu'
    x = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(x, operation)
    return x.tolist()


def gather(thing):
    """One thing from every rank (anything that can be pickled) -> list of W, the same on all ranks."""
    if world() == 1:
        return [thing]
    out = [None] * world()
    dist.all_gather_object(out, thing)
    return out


class GatherRows(torch.autograd.Function):
    """x (N,…) of each rank -> (W·N,…) of all. Backward: the gradients of all ranks' losses with respect to
    this rank's rows, summed. (Where every rank has the same loss of all rows, that is W times what it should
    be; gradients are then averaged over ranks, and so it is right.)

    (The plain all_gather cuts the graph: a caption would not learn from the pictures of other ranks.)
    """

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world())[rank()]


def of_all_ranks(*tensors):
    """(N,…) -> (W·N,…) of each, differentiable; rows N·rank … N·(rank+1) are this rank's own."""
    return tensors if world() == 1 else [GatherRows.apply(x) for x in tensors]


# ---------------------------------------------------------------------------------------------
# The model over many processes


def parallel(module, device, shard, blocks=(), replicated=(), methods=()):
    """Put a module on its device(s) -> what to call in training: the module itself, or DDP around it.

    shard: split the matrices of each block, and then the rest, over the ranks. A block is put together when
        it is needed and split again afterwards (fully_shard, FSDP2). Scalars (the gates) and the modules in
        `replicated` stay whole on every rank; `average` handles their gradients.
    methods: [(module, name)], what is called besides forward; a sharded module is put together for it, too.
    """
    if not shard:
        module.to(device)
        if world() == 1:
            return module
        device_ids = [device] if torch.device(device).type == 'cuda' else None
        return DistributedDataParallel(module, device_ids=device_ids)
    whole_ones = {p for p in module.parameters() if p.ndim == 0}
    whole_ones |= {p for m in replicated for p in m.parameters()}
    # Harmless: nothing here works in place.
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')
    mesh = init_device_mesh(torch.device(device).type, (world(),))
    for unit in (*blocks, module):  # inside out, so that the whole model is never on one device
        fully_shard(unit, mesh=mesh, ignored_params=whole_ones)
    for owner, name in methods:
        put_together_for(owner, name)
    module.to(device)  # what was not sharded
    return module


def put_together_for(owner, name):
    """Put a sharded module's weights together before this method, as before its forward. Not if they are
    together already, as when its forward calls the method: they would be split again too early."""
    units = [m for m in owner.modules() if m is not owner and isinstance(m, FSDPModule)]
    others = {id(p) for unit in units for p in unit.parameters()}
    own = next(key for key, p in owner.named_parameters() if isinstance(p, DTensor) and id(p) not in others)
    plain = getattr(owner, name)
    register_fsdp_forward_method(owner, name)
    gathering = getattr(owner, name)

    def method(*arguments, **options):
        apart = isinstance(owner.get_parameter(own), DTensor)
        return (gathering if apart else plain)(*arguments, **options)

    setattr(owner, name, method)


def accumulating(net, more):
    """The context of a backward pass. If `more` of them follow before the step, DDP need not average yet."""
    return net.no_sync() if more and isinstance(net, DistributedDataParallel) else contextlib.nullcontext()


def apart(groups):
    """Groups of an optimizer, whose params are [(name, parameter)] -> those that have any, with parameters
    alone. With --shard scalars and the vision encoder stay whole on every rank, and the optimizer wants whole
    ones and pieces apart."""
    split = {}
    for i, group in enumerate(groups):
        for name, p in group['params']:
            key = i, p.ndim == 0, name.startswith('vision.')
            split.setdefault(key, group | {'params': []})['params'].append(p)
    return list(split.values())


def average(module, shard):
    """Average over ranks the gradients that fully_shard does not handle (DDP averages all of its own)."""
    if shard:
        for p in module.parameters():
            if p.grad is not None and not isinstance(p.grad, DTensor):
                dist.all_reduce(p.grad)
                p.grad.div_(world())


@torch.no_grad()
def grad_norm(parameters):
    """The global norm of all gradients, of sharded and whole parameters together, as a tensor."""
    grads = [p.grad for p in parameters if p.grad is not None]
    sharded, whole_ones = ([g for g in grads if isinstance(g, DTensor) == split] for split in (True, False))
    norm = torch.nn.utils.get_total_norm(whole_ones)  # of nothing: 0
    return torch.hypot(torch.nn.utils.get_total_norm(sharded).full_tensor(), norm) if sharded else norm


@torch.no_grad()
def clip_grad_norm(parameters, longest):
    """torch.nn.utils.clip_grad_norm_ for sharded and whole parameters together -> the norm before it."""
    parameters = [p for p in parameters if p.grad is not None]
    if not any(isinstance(p.grad, DTensor) for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, longest)
    norm = grad_norm(parameters)
    scale = (longest / (norm + 1e-6)).clamp(max=1.0).item()
    for p in parameters:
        p.grad.mul_(scale)
    return norm


# ---------------------------------------------------------------------------------------------
# One checkpoint format: whole tensors, from one process or many


def whole(tree):
    """A state dict, sharded or not -> the same with whole tensors. Sharded ones go to the CPU of rank 0 and
    are None on the others. All ranks must call it."""
    if isinstance(tree, DTensor):
        full = tree.full_tensor()
        return full.cpu() if rank() == 0 else None
    if isinstance(tree, dict):
        return type(tree)((k, whole(v)) for k, v in tree.items())
    return [whole(v) for v in tree] if isinstance(tree, list) else tree


def like(full, mine):
    """A whole tensor -> split like `mine`, a parameter of this rank."""
    if not isinstance(mine, DTensor) or full.ndim == 0:
        return full
    # Every rank has read the same file and takes its own piece: nothing has to be sent.
    return distribute_tensor(full.to(mine.device), mine.device_mesh, mine.placements, src_data_rank=None)


def load_module(module, state, path):
    """checkpoint.load_into for a module that may be sharded."""
    checkpoint.load_into(module, state, path, place=like)


def load_optimizer(optimizer, state, path):
    """checkpoint.load_optimizer for parameters that may be sharded."""
    checkpoint.load_optimizer(optimizer, state, path, place=like)
