"""Programs compiled for devices that are not here: what is read of their text, and what it is held against."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benches import compiling, hlo, layouts, roofline, targets
from scfm_jax import models, sharding
from scfm_jax.layers.platform import platform
from scfm_jax.models import exceiver
from scfm_jax.training import devices

targets.prepare()  # before any test looks for devices
H100 = devices.find("NVIDIA H100 80GB HBM3")
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/site-packages/flax/linen.py"
2 "{root}/scfm_jax/models/sct/network.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=77 end_line=77 column=1 end_column=2}}

StackFrames
1 {{file_location_id=2 parent_frame_id=1}}
2 {{file_location_id=1 parent_frame_id=2}}


%fused_cut (param_0: f32[8,1000], param_1: s32[]) -> f32[1,1000] {{
  %param_0 = f32[8,1000]{{1,0}} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,1000]{{1,0}} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={{1,1000}}
  ROOT %grown = f32[1,1000]{{1,0}} exponential(%cut)
}}

%fused_put (param_0.1: f32[8,1000], param_1.1: f32[1,1000], param_2: s32[]) -> f32[8,1000] {{
  %param_0.1 = f32[8,1000]{{1,0}} parameter(0)
  %param_1.1 = f32[1,1000]{{1,0}} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %put = f32[8,1000]{{1,0}} dynamic-update-slice(%param_0.1, %param_1.1, %param_2, %zero.1)
}}

%body (arg: (s32[], f32[8,1000])) -> (s32[], f32[8,1000]) {{
  %arg = (s32[], f32[8,1000]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,1000]{{1,0}} get-tuple-element(%arg), index=1
  %one = f32[1,1000]{{1,0}} fusion(%x, %i), kind=kLoop, calls=%fused_cut, metadata={{op_name="a" stack_frame_id=2}}
  %all = f32[8,1000]{{1,0}} fusion(%x, %one, %i), kind=kLoop, calls=%fused_put
  ROOT %next = (s32[], f32[8,1000]{{1,0}}) tuple(%i, %all)
}}

%condition (arg.1: (s32[], f32[8,1000])) -> pred[] {{
  %arg.1 = (s32[], f32[8,1000]{{1,0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %most = s32[] constant(8)
  ROOT %on = pred[] compare(%i.1, %most), direction=LT
}}

%small (p: bf16[4,32]) -> bf16[4,32] {{
  ROOT %p = bf16[4,32]{{1,0}} parameter(0)
}}

%large (p.1: bf16[4,32]) -> bf16[4,32] {{
  %p.1 = bf16[4,32]{{1,0}} parameter(0)
  ROOT %copy = bf16[4,32]{{1,0}} copy(%p.1)
}}

ENTRY %main (a: bf16[4,16], b: bf16[16,32], c: f32[8,1000], yes: pred[]) -> bf16[4,32] {{
  %a = bf16[4,16]{{1,0}} parameter(0)
  %b = bf16[16,32]{{1,0}} parameter(1)
  %c = f32[8,1000]{{1,0}} parameter(2)
  %yes = pred[] parameter(3)
  %product = (bf16[4,32]{{1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
metadata={{op_name="dot" stack_frame_id=1}}, backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":\
{{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}}}}
  %y = bf16[4,32]{{1,0}} get-tuple-element(%product), index=0
  %start = s32[] constant(0)
  %carry = (s32[], f32[8,1000]{{1,0}}) tuple(%start, %c)
  %loop = (s32[], f32[8,1000]{{1,0}}) while(%carry), condition=%condition, body=%body
  %shared = bf16[4,32]{{1,0}} all-reduce(%y), replica_groups={{{{0,1,2,3}}}}, to_apply=%small
  ROOT %end = bf16[4,32]{{1,0}} conditional(%yes, %shared, %shared), true_computation=%small, false_computation=%large
}}
"""


def walked(text: str, **options) -> roofline.Walk:
    return roofline.Walk(hlo.parse(text), H100, **options)


def test_kernels_loops_and_exchanges_of_a_program_written_by_hand():
    walk = walked(PROGRAM.format(root=hlo.ROOT), devices=4)
    costs = {k.name: (k.kind, k.times, k.cost.matrix, k.cost.vector, k.cost.size) for k in walk.kernels}
    assert costs["product"] == ("matmul", 1, 2 * 4 * 32 * 16, 0, 2 * (4 * 16 + 16 * 32 + 4 * 32)), "no room to work in"
    assert costs["one"] == ("fusion", 8, 0, 8 * 1000, 4 * (1000 + 1000) + 4), (
        "what is cut out, eight times an exponential"
    )
    assert costs["all"] == ("fusion", 8, 0, 0, 4 * (1000 + 1000) + 4), "what is put in, in place"
    assert costs["copy"] == ("copy", 1, 0, 0, 2 * 2 * 4 * 32), "the longer branch"
    assert walk.loops == [("loop", 8, "")] and "p" not in costs
    assert walk.exchanges == [roofline.Exchange("all-reduce", 1, 2 * 3 / 4 * 2 * 4 * 32, 4)]
    sources = {k.name: k.source for k in walk.kernels}
    assert sources["product"] == sources["one"] == "scfm_jax/models/sct/network.py:77", "not flax's own line"
    seconds = [k.times * max(k.cost.vector / 33e12, k.cost.size / 3350e9) for k in walk.kernels if k.name != "product"]
    assert walk.seconds() == pytest.approx(sum(seconds) + 1408 / 3350e9)
    assert walk.exchange_seconds() == pytest.approx(384 / 450e9)


@pytest.mark.parametrize(
    ("text", "size", "space"),
    [
        ("f32[3,5]{1,0}", 60, 0),
        ("bf16[200,8]{0,1:T(8,128)(2,1)S(1)}", 2 * 256 * 8, 1),  # 200 genes lie side by side, 128 to a tile
        ("f32[10,3,5]{2,1,0:T(8,128)}", 4 * 10 * 8 * 128, 0),
        ("pred[]", 1, 0),
        ("f8e4m3fn[7]{0}", 7, 0),
    ],
)
def test_an_array_takes_the_bytes_of_its_layout(text, size, space):
    (array,) = hlo.arrays(text)
    assert (array.size, array.space) == (size, space)


@pytest.mark.parametrize(
    ("groups", "n"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("", 16),
    ],
)
def test_devices_that_exchange_are_counted(groups, n):
    text = f"ENTRY %e (a: f32[4]) -> f32[4] {{\n  ROOT %x = f32[4]{{0}} all-gather(%a), {groups}\n}}"
    assert hlo.group(hlo.parse(text).computations["e"]["x"], 16) == n


def test_on_a_tpu_what_is_on_the_chip_is_no_traffic_and_copies_to_it_go_beside():
    on, off = "f32[8,128]{1,0:T(8,128)S(1)}", "f32[8,128]{1,0:T(8,128)}"
    text = f"""ENTRY %e (a: f32[8,128]) -> f32[8,128] {{
  %a = {off} parameter(0)
  %start = ({on}, {off}, u32[]{{:S(2)}}) copy-start(%a)
  %done = {on} copy-done(%start)
  ROOT %x = {off} add(%done, %done)
}}"""
    start, add = walked(text, on_chip=True).kernels
    assert (start.cost.size, start.apart, start.kind) == (4096, True, "copy")
    assert (add.cost.size, add.cost.vector) == (4096, 1024), "written alone"


@pytest.mark.parametrize(("target", "products"), [("__cudnn$fmhaSoftmax", 2), ("__cudnn$fmhaSoftmaxBackward", 5)])
def test_a_fused_attention_multiplies_twice_and_five_times_backwards(target, products):
    text = f"""ENTRY %e (q: bf16[2,256,4,64]) -> bf16[2,4,256,64] {{
  %q = bf16[2,256,4,64]{{3,2,1,0}} parameter(0)
  ROOT %y = (bf16[2,4,256,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), custom_call_target="{target}", \
backend_config={{"cudnn_fmha_backend_config": {{"intermediate_tensor_shape": {{"dimensions": ["2", "4", "256", \
"256"]}}, "bmm1_dot_dimension_numbers": {{"lhs_contracting_dimensions": ["3"]}}}}}}
}}"""
    (kernel,) = walked(text).kernels
    assert (kernel.kind, kernel.cost.matrix) == ("attention", products * 2 * 2 * 4 * 256 * 256 * 64)


def layers(x, kernels, filters):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    x = jax.lax.scan(layer, x, kernels)[0]
    return jax.lax.conv_general_dilated(x[None], filters, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")).sum()


def test_flops_of_compiled_programs_are_those_of_the_formula_and_of_xla():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((12, 16), (5, 16, 16), (3, 16, 8))]
    compiled = jax.jit(jax.grad(layers)).lower(*shapes).compile()
    walk = walked(compiled.as_text())
    assert [times for _, times, _ in walk.loops] == [5, 5]
    products = 5 * 2 * 2 * 12 * 16 * 16  # forward, and backward to x alone
    padded = 2 * (3 * 12 - 2) * 16 * 8  # the ends of a convolution meet two taps
    assert sum(k.times * k.cost.matrix for k in walk.kernels) == products + padded
    alone = jax.jit(lambda x, kernels, filters: layers(x, kernels[:1], filters)).lower(*shapes).compile()
    walk = walked(alone.as_text())
    counted = sum(k.times * (k.cost.matrix + k.cost.vector) for k in walk.kernels)
    assert counted == pytest.approx(alone.cost_analysis()["flops"], rel=0.25), "XLA counts tanh apart"


def test_the_platform_is_that_of_the_mesh_and_then_that_of_the_process(monkeypatch):
    assert platform() == jax.default_backend() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with jax.set_mesh(sharding.make_mesh(data=-1)):
        assert platform() == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a100:1", "--target=a100:1: there are h100, h200:NUMBER and v5e, v5p, v6e:AxB"),
        ("h100:0", "there are"),
        ("v5e:16", "there are"),
        ("h100:8", 'jax-cuda13-plugin is not installed, which has the compiler: pip install "scfm_jax\\[cuda13\\]"'),
        ("v6e:4x4", 'libtpu is not installed, which has the compiler: pip install "scfm_jax\\[tpu\\]"'),
    ],
)
def test_a_target_that_there_is_not_or_without_its_compiler_is_one_line(name, message, monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(targets.importlib.metadata, "version", absent)
    with pytest.raises(ValueError, match=message):
        targets.find(name)


def test_a_layout_is_a_row_or_a_variant_and_says_which_there_are():
    case = layouts.layout("sct", "tiny", ["remat:True", "pos:rope"], "bfloat16")
    assert (case.network.embed_dim, case.network.remat, case.network.pos) == (64, True, "rope")
    assert case.network.dtype == "bfloat16" and case.batch.genes.shape[:2] == (1, 8)
    assert layouts.layout("scemb", "published").batch.genes.shape == (8, 1, 2048)
    for row, network, message in (
        ("XL", [], "--row=XL: sct has the rows S, M, L, published and variants tiny, small"),
        ("tiny", ["width:3"], "--network=width: sct has no such field; there are"),
        ("tiny", ["width"], "--network=width: write name:value"),
    ):
        with pytest.raises(ValueError, match=message):
            layouts.layout("sct", row, network)
    with pytest.raises(ValueError, match="--mesh=model:2: write a number for each of data, fsdp, seq"):
        layouts.mesh_sizes(["model:2"])


def test_the_most_bags_that_fit_lie_on_the_line_through_those_compiled():
    rows = [{"bags": 2, "peak_gb": 30.0}, {"bags": 4, "peak_gb": 40.0}]
    (row,) = compiling.largest(rows, memory=80, cells=50)
    assert (row["bags"], row["cells"], row["peak_gb"]) == (11, 550, 75.0)  # 20 + 5 a bag, of 76 GB
    assert compiling.largest(rows[:1], 80, 50) == []
    (row,) = compiling.largest(rows, memory=16, cells=50)
    assert row["bags"] == 0 and "peak_gb" not in row


def wanted(model: str, target: targets.Target, **options) -> compiling.Wanted:
    case = layouts.layout(model, "tiny", dtype="bfloat16")
    return compiling.Wanted(model, case, target, sharding.mesh_of(target.devices[:1]), **options)


def here() -> targets.Target:
    return targets.Target("cpu", jax.devices(), H100, {})


@pytest.mark.slow
def test_a_program_for_this_machine_has_the_flops_that_the_model_says():
    program = compiling.compiled(wanted("scemb", here()), 4)
    rows = compiling.described(wanted("scemb", here()), program, 4)
    (estimate,) = next(iter(rows.values()))
    assert estimate["tflop"] == pytest.approx(estimate["model_tflop"], rel=0.1)
    assert program.cells == 4 and 0 < estimate["mfu"] < 1


NAMES = {"tpu": "v5e:1x1", "cuda13": "h100:1"}


@functools.cache
def target(extra: str) -> targets.Target:
    if why := targets.absent(extra):
        pytest.skip(why)
    return targets.find(NAMES[extra])


@pytest.mark.slow
def test_what_exceivers_keys_are_made_of_compiles_for_a_gpu():
    """Joined as columns, the last one number wide, they became a kernel that the compiler refuses."""
    one, model = target("cuda13"), exceiver.Model(n_genes=19_067, **exceiver.VARIANTS["published"]["model"])
    mesh, shapes = sharding.mesh_of(one.devices), jax.eval_shape(lambda: model.init(jax.random.key(0), method="rows"))
    variables = sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))
    with jax.set_mesh(mesh):
        made = jax.jit(lambda variables: model.apply(variables, method="rows")).lower(variables)
        assert made.compile(compiler_options=one.options).memory_analysis().output_size_in_bytes >= 4 * 19_068 * 9


@pytest.mark.slow
@pytest.mark.parametrize("extra", NAMES)
@pytest.mark.parametrize("model", models.names())
def test_every_model_compiles_for_a_device_that_is_not_here(model, extra):
    one = wanted(model, target(extra))
    rows = compiling.sections(one, [1])
    memory, (estimate,), kinds = list(rows.values())[:3]
    assert 0 < memory[0]["of_memory"] < 0.2
    assert np.isfinite(estimate["s"]) and 0 < estimate["mfu"] < 1
    assert "matmul" in {row["kind"] for row in kinds}
    assert compiling.compiled(one._replace(infer=True), 1).flops < 1e12 * estimate["model_tflop"]
