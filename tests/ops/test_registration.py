import subprocess
import sys

import pytest
import torch
from rows import assert_all_equal, make_jagged, make_rows

import shfcas

ROW_OPS = (
    "kendall_counts",
    "kendall_tau",
    "kendall_distance",
    "kendall_statistics",
    "kendall_test",
    "pacs",
    "conflict_scores",
)
MATRIX_OPS = ("kendall_tau_matrix", "kendall_distance_matrix")
TOKEN_OPS = ("sequence_logprobs", "token_logprobs", "token_statistics")
LINEAR_OPS = ("linear_token_logprobs", "linear_token_statistics")
OPS = (*ROW_OPS, *MATRIX_OPS, *TOKEN_OPS, *LINEAR_OPS)
GRADIENTS = ("pacs_backward", "token_statistics_backward", "linear_token_statistics_backward")
DIFFERENTIABLE = ("pacs", "pacs_backward", "conflict_scores", *TOKEN_OPS, *LINEAR_OPS)


def op_of(name):
    return getattr(torch.ops.shfcas, name).default


def samples(name):
    """Arguments of an op: contiguous, strided, of other dtypes, jagged, empty. No result is NaN: opcheck would call
    it unequal to itself."""
    if name.startswith("linear"):
        yield from linear_samples(name)
        return
    if name in TOKEN_OPS or name == "token_statistics_backward":
        labels, mask = torch.tensor([[0, 4, 2], [1, 1, -100]]), torch.tensor([[True, False, True], [True, True, False]])
        logits = make_rows((2, 3, 5), torch.float32, 0)
        for arguments in (
            (logits, labels, mask),
            (make_rows((3, 5, 4), torch.float64, 1).transpose(0, 1)[:, :, ::2][:2], labels.clamp(0, 1), None),
            (logits.bfloat16(), labels, mask),
            (logits[:0], labels[:0], mask[:0]),
        ):
            if name == "sequence_logprobs":
                yield arguments
                continue
            for entropy in (False, True):
                if name != "token_statistics_backward":
                    yield *arguments, 0.7, entropy
                else:
                    _, logprobs, entropies, normalizer = op_of("token_statistics")(*arguments, 0.7, entropy)
                    saved = (logprobs, entropies) if entropy else (None, None)
                    yield logprobs, saved[0], *arguments, saved[1], normalizer, 0.7
        return
    x, y = make_rows((4, 6), torch.float32, 0), make_rows((4, 6), torch.float32, 1)
    pairs = [
        (x, y),
        (x.t(), y.t()),
        (x[:, ::2].double(), y[:, ::2].double()),
        (x.bfloat16(), y.bfloat16()),
        (x[:0], y[:0]),
    ]
    if name in MATRIX_OPS:
        yield from ((one,) for one, _ in pairs)
        return
    *flat, offsets = make_jagged([3, 2, 5], torch.float32, 2)
    first = [torch.ones_like(one) for one in (*(x for x, _ in pairs), flat[0])] if name == "pacs_backward" else None
    for index, arguments in enumerate([*pairs, tuple(flat)]):
        yield *(() if first is None else (first[index],)), *arguments, *((offsets,) if index == len(pairs) else ())


def linear_samples(name):
    hidden, weight = make_rows((2, 3, 4), torch.float32, 0), make_rows((7, 4), torch.float32, 1)
    labels, bias = torch.tensor([[0, 6, 2], [1, 1, 5]]), make_rows((7,), torch.float32, 2)
    for arguments in (
        (hidden, weight, labels, bias),
        (hidden.double(), weight.t().contiguous().t().double(), labels, None),
        (hidden[0].bfloat16(), weight.bfloat16(), labels[0], bias.bfloat16()),
        (hidden[:0], weight, labels[:0], bias),
    ):
        for entropy in (False, True):
            if not name.endswith("backward"):
                yield *arguments, 0.7, entropy
            else:
                logprobs, entropies, normalizer = op_of("linear_token_statistics")(*arguments, 0.7, entropy)
                of_entropy, saved = (logprobs, entropies) if entropy else (None, None)
                yield (
                    logprobs,
                    of_entropy,
                    *arguments,
                    saved,
                    normalizer,
                    0.7,
                    [True, entropy, arguments[3] is not None],
                )


def call(name, *arguments):
    """An op with its arguments in order; kendall_test and kendall_tau have others before the offsets."""
    offsets = arguments[2] if name.startswith("kendall") and len(arguments) == 3 else None
    return op_of(name)(*arguments[:2], offsets=offsets) if offsets is not None else op_of(name)(*arguments)


def parts(result):
    return list(result) if isinstance(result, tuple | list) else [result]


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name in (*OPS, *GRADIENTS) for k, _ in enumerate(samples(name))]
)
def test_opcheck(name, number):
    arguments, options = list(samples(name))[number], {}
    if name.startswith("kendall") and len(arguments) == 3:
        *arguments, options["offsets"] = arguments
    if name in DIFFERENTIABLE:
        arguments = [a.requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
    torch.library.opcheck(op_of(name), tuple(arguments), options)


@pytest.mark.parametrize("name", [*OPS, *GRADIENTS])
def test_meta_tensors(name):
    for arguments in samples(name):
        expected = parts(call(name, *arguments))
        result = parts(call(name, *(a.to("meta") if torch.is_tensor(a) else a for a in arguments)))
        for one, other in zip(result, expected, strict=True):
            assert one.is_meta
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing(name):
    for arguments in samples(name):
        expected = parts(call(name, *arguments))
        with torch.autocast("cpu", torch.bfloat16):
            result = parts(call(name, *arguments))
        assert_all_equal(result, expected)


def test_gradient_under_autocast():
    rewards, logprobs = make_rows((3, 8), torch.float32, 6), make_rows((3, 8), torch.float32, 7)
    gradients = []
    for enabled in (False, True):
        weight = torch.ones(8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = shfcas.pacs(rewards * weight, logprobs).square().sum()
        loss.backward()
        gradients.append(weight.grad)
    assert_all_equal(gradients[:1], gradients[1:])


def compiled_shapes(name):
    """Arguments of the public functions, in three shapes."""
    for shape in ((3, 8), (5, 8), (4, 70)):
        x, y = make_rows(shape, torch.float32, 3), make_rows(shape, torch.float32, 4)
        if name in TOKEN_OPS:
            yield x.expand(2, *shape), torch.zeros(2, shape[0], dtype=torch.int64)
        elif name in LINEAR_OPS:
            yield x, y, torch.zeros(shape[0], dtype=torch.int64)
        else:
            yield (x,) if name in MATRIX_OPS else (x, y)


def function_of(name):
    function = getattr(shfcas, name, None) or op_of(name)  # kendall_statistics is an op alone
    return lambda *arguments: function(*arguments)


@pytest.mark.parametrize("name", OPS)
def test_compiles_without_a_break(name):
    torch.compiler.reset()  # the limit of recompilations counts all cases as one function
    function = function_of(name)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for arguments in compiled_shapes(name):
        assert_all_equal(parts(compiled(*arguments)), parts(function(*arguments)))


@pytest.mark.parametrize("name", OPS)
def test_exports(name):
    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return function_of(name)(*arguments)

    example, *others = compiled_shapes(name)
    ranks = [tuple(torch.export.Dim.DYNAMIC for _ in argument.shape) for argument in example]
    if name in TOKEN_OPS:
        ranks = [{1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}, {1: torch.export.Dim.DYNAMIC}]
    exported = torch.export.export(Module(), example, dynamic_shapes={"arguments": tuple(ranks)}).module()
    for arguments in (example, *others):
        assert_all_equal(parts(exported(*arguments)), parts(function_of(name)(*arguments)))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.system)])
def test_compiled_gradient(backend):
    def loss(rewards, logprobs, offsets):
        return shfcas.pacs(rewards, logprobs, offsets=offsets).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    rewards, logprobs, offsets = make_jagged([3, 8, 5], torch.float64, 5)
    gradients = []
    for function in (loss, compiled):
        inputs = rewards.clone().requires_grad_(), (logprobs**2).requires_grad_()
        function(*inputs, offsets).backward()
        gradients.append([value.grad for value in inputs])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.system)])
@pytest.mark.parametrize("name", ["sequence_logprobs", "token_logprobs", "linear_token_logprobs"])
def test_compiled_gradient_of_logprobs(name, backend):
    function = getattr(shfcas, name)
    options = {} if name == "sequence_logprobs" else {"temperature": 0.7, "entropy": True}

    def loss(*arguments):
        result = function(*arguments, **options)
        return sum(part.square().sum() for part in (result if isinstance(result, tuple) else [result]))

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    given = [a for a in next(samples(name)) if torch.is_tensor(a)]
    gradients = []
    for each in (loss, compiled):
        arguments = [a.clone().requires_grad_() if a.is_floating_point() else a for a in given]
        each(*arguments).backward()
        gradients.append([a.grad for a in arguments if a.requires_grad])
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
