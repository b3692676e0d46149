import subprocess
import sys

import pytest
import torch
from rows import assert_all_equal, make_jagged, make_rows

import shfcas

OPS = ("kendall_counts", "kendall_tau", "kendall_distance", "pacs", "conflict_scores")
DIFFERENTIABLE = ("pacs",)


def samples():
    """Arguments of two row tensors: dense, strided, jagged, empty."""
    x, y = make_rows((4, 6), torch.float32, 0), make_rows((4, 6), torch.float32, 1)
    yield x, y
    yield x.t(), y.t()
    yield x[:, ::2].double(), y[:, ::2].double()
    yield x.bfloat16(), y.bfloat16()
    yield make_jagged([3, 2, 5], torch.float32, 2)  # no result is NaN, which opcheck would call unequal
    yield torch.empty(0, 3), torch.empty(0, 3)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("index", range(6))
def test_opcheck(name, index):
    arguments = list(samples())[index]
    offsets = {"offsets": arguments[2]} if len(arguments) == 3 else {}
    x, y = (argument.requires_grad_(name in DIFFERENTIABLE) for argument in arguments[:2])
    torch.library.opcheck(getattr(torch.ops.shfcas, name).default, (x, y), offsets)


@pytest.mark.parametrize("index", range(6))
def test_opcheck_of_the_gradient(index):
    x, y, *offsets = list(samples())[index]
    torch.library.opcheck(torch.ops.shfcas.pacs_backward.default, (torch.ones_like(x), x, y, *offsets))


@pytest.mark.parametrize("name", OPS)
def test_compiles_without_a_break(name):
    torch.compiler.reset()  # the limit of recompilations counts all cases as one function
    function = getattr(shfcas, name)
    compiled = torch.compile(lambda x, y: function(x, y), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (5, 8), (2, 4, 70)):
        x, y = make_rows(shape, torch.float32, 3), make_rows(shape, torch.float32, 4)
        expected, result = function(x, y), compiled(x, y)
        assert_all_equal(
            result if isinstance(result, tuple) else [result],
            expected if isinstance(expected, tuple) else [expected],
        )


def test_compiled_gradient():
    def loss(rewards, logprobs, offsets):
        return shfcas.pacs(rewards, logprobs, offsets=offsets).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="inductor")
    rewards, logprobs, offsets = make_jagged([3, 8, 5], torch.float64, 5)
    gradients = []
    for function in (loss, compiled):
        inputs = rewards.clone().requires_grad_(), (logprobs**2).requires_grad_()
        function(*inputs, offsets).backward()
        gradients.append([value.grad for value in inputs])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_import_is_light():
    code = (
        "import sys, shfcas;"
        "heavy = {'transformers', 'trl', 'datasets', 'pyarrow', 'pandas', 'scipy', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_import_does_not_start_cuda():
    code = "import torch, shfcas; print(torch.cuda.is_initialized())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_missing_library_names_the_versions():
    code = "import sys; sys.modules['shfcas._C'] = None; import shfcas"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode != 0
    message = found.stderr.splitlines()[-1]
    assert f"built with torch {shfcas.build_facts()['torch']}" in message
    assert f"this is torch {torch.__version__}" in message
    assert "pip install" in message


def test_version_comes_from_the_metadata():
    assert shfcas.__version__.count(".") == 2
