"""A device that is none: it computes on the CPU and refuses tensors that lie elsewhere, as a GPU would.

Where a tensor was left behind on the CPU, or is turned into numpy or a pointer without a copy, the code breaks here as
it would on a GPU. Built on torch's PrivateUse1 key with a tensor subclass; the registration lasts as long as the
process, so a test starts one of its own:

    python tests/pretend_device.py JOBS.json    # [{"recipe": {...}, "out": "..."}, ...]; LUTHIER_DEVICE=pretend:0
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # CUDA takes a CPU index
FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m",
    "randperm", "randperm.generator", "randint", "randint.low", "randint.generator", "randint.low_generator",
)  # fmt: skip
KEPT = []


class PretendTensor(torch.Tensor):
    """`raw` is the same tensor on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), dtype=raw.dtype, device=torch.device(NAME, 0),
            storage_offset=raw.storage_offset(),
        )  # fmt: skip

    def __init__(self, raw):
        self.raw = raw

    def __repr__(self):
        return f"PretendTensor({self.raw})"

    # torch forbids these to subclasses; a GPU's tensor has them
    def tolist(self):
        return self.raw.tolist()

    def storage(self):
        return self.raw.storage()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    def data_ptr(self):
        return self.raw.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def raw(value):
    """Of a tensor on the device what lies behind it; anything else as it is."""
    return value.raw if isinstance(value, PretendTensor) else value


def is_here(device):
    return torch.device(device).type == NAME


def computed(func, args, kwargs):
    """The operator on the CPU; results and views of results are on the device again."""
    name = func.overloadpacket._qualified_op_name
    if name == "aten::copy_":  # between devices, as told
        raw(args[0]).copy_(raw(args[1]))
        return args[0]
    leaves, shape = tree.tree_flatten((args, kwargs))
    if name != "aten::_to_copy" and name not in INDEXING:
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, PretendTensor) and leaf.dim():
                raise RuntimeError(f"{func}: expected all tensors on {NAME}, found one on {leaf.device}")
    places, settings = tree.tree_unflatten([raw(leaf) for leaf in leaves], shape)
    device = settings.get("device")
    stays = is_here(device) if device is not None else any(isinstance(leaf, PretendTensor) for leaf in leaves)
    if "device" in settings:
        settings |= {"device": "cpu", "pin_memory": False}
    known = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, PretendTensor)}  # updates in place

    def placed(value):
        if not stays or not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else PretendTensor(value)

    return tree.tree_map(placed, func(*places, **settings))


def made(name):
    """A factory that makes its tensor on the CPU and wraps it."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def make(*args, **kwargs):
        return PretendTensor(operator(*args, **kwargs | {"device": "cpu", "pin_memory": False}))

    return make


def copy_from(source, target, non_blocking=False):
    """How `torch.tensor(..., device=...)` copies: past the dispatch of subclasses."""
    raw(target).copy_(raw(source))
    return target


class Backend(_DummyBackendModule):
    """What torch asks of a device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=0):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=0):
        torch.set_rng_state(state)


def set_up():
    """Make the device known to torch, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME, Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # else `module.to` would untie tied weights
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        library.impl(name, made(name), "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    KEPT.append(library)  # what it registered goes with it


def main():
    """Run each job and write what it came to beside its folder."""
    set_up()
    import luthier
    from luthier.models import load
    from luthier.recipe import parse_recipe
    from luthier.recipe.stages import parse_stages
    from luthier.stages import train

    load.has_fast_bfloat16 = lambda device: True  # it takes part in that pretence

    for job in json.loads(Path(sys.argv[1]).read_text()):
        recipe, out = job["recipe"], job["out"]
        result = train(parse_stages(recipe), out) if "stages" in recipe else luthier.run(parse_recipe(recipe), out)
        Path(f"{out}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
