"""Typed models, what does not fuse in them, and what each layer computes in."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from grd_edge.bench.upsampling import random_checkpoint
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from grd_edge.calibrate import ranges_from_images
from grd_edge.config import load_config
from grd_edge.engine.fusion_check import findings_of
from grd_edge.engine.layer_report import COLUMNS, cells, report_from_graph, report_from_inspector
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine, reconstruction_difference
from grd_edge.engine.typed import check_graph, parsed_model, typed_from_onnx
from grd_edge.errors import CheckFailedError, EngineError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.quantize import layers_of, qdq_from_onnx
from grd_edge.ranges import IMAGE, RangeTable
from grd_edge.recipes import Minmax
from tests.conftest import TINY, score_map_model

WIDE = (*TINY, "model.base=16", "model.stages=[2, 2]", "model.latent=16")
PATCH = (1, 32, 32)


@pytest.fixture(scope="module")
def fp32():
    return onnx_from_checkpoint(random_checkpoint(load_config(overrides=WIDE)))


@pytest.fixture(scope="module")
def table(fp32):
    x = np.random.default_rng(9).random((16, *PATCH), np.float32)
    return ranges_from_images(fp32, [x], recipe=Minmax(algorithm="minmax"), images_sha256="")


@pytest.fixture(scope="module")
def typed(fp32, table):
    return {name: typed_from_onnx(fp32, name, table=table) for name in ("fp16", "int8", "fp8")}


class TestTyped:
    @pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-4), ("int8", 0.02), ("fp8", 0.04)])
    @pytest.mark.parametrize("form", ["transposed", "conv2x2", "conv3x3+blocked"])
    def test_it_computes_what_fp32_computes(self, fp32, table, precision, bound, form):
        model = typed_from_onnx(fp32, precision, table=table, form=form, half=precision != "fp8")
        for batch in (1, 3, 17):
            x = np.random.default_rng(batch).random((batch, *PATCH), np.float32)
            found, expected = (OnnxRuntimeEngine(each).reconstruct(x) for each in (model, fp32))
            assert found.dtype == np.float32
            assert 0 < np.abs(found - expected).mean() <= bound  # x_hat varies by 0.12 to 0.17

    def test_fp8_in_fp16_by_the_operators_definitions(self, fp32, typed):
        x = np.random.default_rng(2).random((2, *PATCH), np.float32)
        (found,) = ReferenceEvaluator(onnx.load_from_string(typed["fp8"])).run(None, {"x": x})
        difference = np.abs(found - OnnxRuntimeEngine(fp32).reconstruct(x))
        assert 0 < difference.mean() <= 0.04

    def test_types_are_the_precision(self, typed):
        for name, model in typed.items():
            graph = onnx.load_from_string(model).graph
            assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [1, 1]
            producer = {output: node for node in graph.node for output in node.output}
            assert producer[producer["x_hat"].input[0]].op_type == "Cast"  # the sigmoid is computed in FP32
            kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
            code = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
            assert kinds == {TensorProto.FLOAT16, *([code[name]] if name in code else [])}

    def test_the_same_arguments_give_the_same_bytes(self, fp32, table, typed):
        assert typed_from_onnx(fp32, "int8", table=table) == typed["int8"]

    def test_kept_layers(self, fp32, table):
        kept = "decoder.blocks.1.conv1"
        half = onnx.load_from_string(typed_from_onnx(fp32, "fp16", keep=[kept]))
        assert {t.data_type for t in half.graph.initializer if t.name.startswith(kept)} == {TensorProto.FLOAT}
        codes = onnx.load_from_string(typed_from_onnx(fp32, "int8", table=table, keep=[kept]))
        found = {t.name: t.data_type for t in codes.graph.initializer if t.name.startswith(f"{kept}.weight")}
        assert found == {f"{kept}.weight": TensorProto.FLOAT16}

    def test_refusals(self, fp32, table):
        cases = [
            (lambda: typed_from_onnx(fp32, "int8"), "int8 needs the ranges.*give --ranges"),
            (lambda: typed_from_onnx(fp32 + b"\n\x00", "int8", table=table), "stale"),
            (lambda: typed_from_onnx(fp32, "fp16", form="conv4x4"), "no form 'conv4x4'; choose transposed"),
            (lambda: typed_from_onnx(fp32, "fp16", keep=["decoder.none"]), "no layer 'decoder.none'"),
            (lambda: typed_from_onnx(b"no model", "fp16"), "no valid ONNX.*export it again"),
        ]
        for call, words in cases:
            with pytest.raises(InputError, match=words) as caught:
                call()
            assert "\n" not in str(caught.value)

    def test_a_generator_takes_and_gives_the_same_patches(self, fp32):
        check_graph(onnx.load_from_string(fp32), PATCH, "reconstruction")
        for shape in ((1, 32, 31), (3, 32, 32)):
            with pytest.raises(InputError, match=r"not that of this bundle: it takes and gives \[0, 1, 32, 32\]"):
                check_graph(onnx.load_from_string(fp32), shape, "reconstruction")
        two = onnx.load_from_string(fp32)
        two.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [8]))
        with pytest.raises(InputError, match=r"gives \[0, 1, 32, 32\] and \[0, 1, 32, 32\]; \[8\]"):
            check_graph(two, PATCH, "reconstruction")

    def test_a_graph_that_scores_yields_a_row_more(self, fp32):
        scores = onnx.load_from_string(score_map_model())
        check_graph(scores, PATCH, "score_map")
        with pytest.raises(
            InputError, match=r"gives \[0, 1, 32, 32\] and \[0, 1, 33, 32\], where .* many \[1, 32, 32\]"
        ):
            check_graph(scores, PATCH, "reconstruction")
        with pytest.raises(InputError, match=r"where any number of float32 \[1, 32, 32\] and as many \[1, 33, 32\]"):
            check_graph(onnx.load_from_string(fp32), PATCH, "score_map")

    def test_external_weights_are_refused(self, fp32):
        model = onnx.load_from_string(fp32)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        with pytest.raises(InputError, match=r"(no valid ONNX|weights in other files).*export it again"):
            parsed_model(model.SerializeToString())

    def test_a_model_that_gives_no_numbers_is_refused(self, fp32):
        model = onnx.load_from_string(fp32)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "decoder.out.bias")
        bias.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), bias.name))
        with pytest.raises(CheckFailedError, match="the thing gives values that are not finite; keep layers"):
            reconstruction_difference(model.SerializeToString(), fp32, "the thing")


class TestFindings:
    def test_what_the_project_writes_asks_for_nothing(self, typed):
        for name, model in typed.items():
            findings = findings_of(onnx.load_from_string(model))
            assert not [str(each) for each in findings if each.open]
            kept = [each.layer for each in findings]
            transposed = ["decoder.blocks.0.0", "decoder.blocks.2.0"]
            assert kept == ([] if name == "fp16" else ["encoder.stem.0", *transposed, "decoder.out"])
            assert all(each.explained and each.layer in str(each) for each in findings)

    def test_a_kept_layer_is_explained(self, fp32, table):
        name = "decoder.blocks.1.conv1"
        model = onnx.load_from_string(typed_from_onnx(fp32, "int8", table=table, keep=[name]))
        (finding,) = [each for each in findings_of(model, (name,)) if each.layer == name]
        assert "--keep asks for it" in finding.explained

    def test_another_style_is_taken_apart(self, fp32, table):
        """The styles of CPU engines, given to TensorRT as they are."""
        found = {
            style: [str(each) for each in findings_of(onnx.load_from_string(qdq_from_onnx(fp32, table, style=style)))]
            for style in ("openvino", "onnxruntime")
        }
        text = "\n".join(found["openvino"])
        assert "decoder.blocks.0.0: a transposed convolution in int8" in text
        assert "--keep decoder.blocks.0.0" in text and "--form conv2x2" in text
        assert "decoder.out: it has 1 channels" in text
        assert "x: TensorRT takes signed codes with zero point 0 only" in text
        text = "\n".join(found["onnxruntime"])
        assert "its bias is quantized" in text
        assert "Q/DQ between the convolution and the sum" in text

    def test_narrow_layers(self):
        config = load_config(overrides=TINY)  # base 4
        fp32 = onnx_from_checkpoint(random_checkpoint(config))
        tensors = {layer.tensor for layer in layers_of(onnx.load_from_string(fp32))} - {IMAGE}
        table = RangeTable("minmax", sha256_hex(fp32), "", 8, 8, dict.fromkeys(tensors, (-4.0, 4.0)))
        found = findings_of(onnx.load_from_string(typed_from_onnx(fp32, "int8", table=table)))
        narrow = [each for each in found if each.open]
        assert {each.layer for each in narrow} >= {"encoder.blocks.0.conv1"}
        assert all("tensor cores compute 16 at least; keep it in FP16 (--keep " in str(each) for each in narrow)

    @pytest.mark.parametrize("broken", ["sigmoid", "weight only", "data only", "norm"])
    def test_planted(self, typed, fp32, broken):
        model = onnx.load_from_string(typed["int8"] if broken != "norm" else fp32)
        graph = model.graph
        if broken == "sigmoid":
            sigmoid = next(node for node in graph.node if node.op_type == "Sigmoid")
            scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
            zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
            graph.initializer.extend([scale, zero])
            nodes = [
                helper.make_node("QuantizeLinear", [sigmoid.input[0], "s", "z"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
            ]
            sigmoid.input[0] = "dq"
            for node in nodes:
                graph.node.insert(len(graph.node) - 2, node)
            words = "quantized sigmoid"
        elif broken == "norm":
            node = next(node for node in graph.node if node.op_type == "Conv")
            names = [f"n{i}" for i in range(4)]
            graph.initializer.extend([helper.make_tensor(name, 1, [16], [1.0] * 16) for name in names])
            output, node.output[0] = node.output[0], "raw"
            graph.node.insert(1, helper.make_node("BatchNormalization", ["raw", *names], [output]))
            words = "batch normalization is not folded"
        else:
            producer = {output: node for node in graph.node for output in node.output}
            conv = next(
                node
                for node in graph.node
                if node.op_type == "Conv" and producer[node.input[0]].op_type == "DequantizeLinear"
            )
            slot = 0 if broken == "weight only" else 1
            if slot == 0:
                conv.input[0] = producer[producer[conv.input[0]].input[0]].input[0]
            else:
                conv.input[1] = next(t.name for t in graph.initializer if t.name == "encoder.stem.0.weight")
            words = "is quantized and its"
        assert any(words in str(each) and each.open for each in findings_of(model))


class TestLayers:
    def test_from_the_graph(self, typed):
        for name, model in typed.items():
            report = report_from_graph(onnx.load_from_string(model))
            rows = {row.layer: row for row in report.rows}
            assert report.source == "graph"
            assert rows["encoder.stem.0"].precision == "fp16"
            assert rows["encoder.stem.0"].output == "fp16 n x 16 x 32 x 32"
            assert rows["encoder.stem.0"].mmac == pytest.approx(16 * 9 * 32 * 32 / 1e6)
            block = rows["encoder.blocks.0.conv1"]
            assert block.precision == name
            assert block.weight_bytes == 16 * 16 * 9 * (2 if name == "fp16" else 1)
            up = rows["decoder.blocks.2.0"]
            assert (up.op, up.precision) == ("ConvTranspose", "fp16")
            assert up.mmac == pytest.approx(up.weight_bytes / 2 * 16 * 16 / 1e6)  # each weight once per input pixel
            assert report.rows[-1].op == "Sigmoid" and report.rows[-1].precision == "fp32"
            assert sum(report.precisions().values()) == len(report.rows)
            assert {len(row) for row in cells(report)} == {len(COLUMNS)}

    def test_multiply_adds_are_those_of_the_network(self, fp32):
        """The sum is what docs/method.md tells of the edge profile: 2.3 GMAC per 256x256 patch at base 16."""
        config = load_config(overrides=("model.patch_h=256", "model.patch_w=256", "model.base=16"))
        model = onnx.load_from_string(onnx_from_checkpoint(random_checkpoint(config)))
        total = sum(row.mmac or 0 for row in report_from_graph(model).rows)
        assert total == pytest.approx(2300, rel=0.03)

    @pytest.mark.parametrize(
        "tensor",
        [
            {
                "Name": "a",
                "Dimensions": [1, 16, 8, 8],
                "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
            },
            {"Name": "a", "Dimensions": [1, 16, 8, 8], "Format": "Channel major (kCHW32)", "DataType": "Int8"},
        ],
    )
    def test_from_the_inspector_of_10_and_11(self, tensor):
        half = {"Name": "b", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major linear FP16 format"}
        layer = {
            "Name": "encoder.blocks.0.conv1 + PWN(leaky)",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [tensor],
            "Outputs": [half],
            "Weights": {"Type": "Int8", "Count": 2304},
            "TacticName": "sm80_xmma_fprop",
        }
        report = report_from_inspector(json.dumps({"Layers": [layer], "Bindings": ["x"]}))
        (row,) = report.rows
        assert report.source == "engine"
        assert (row.op, row.precision, row.kernel) == ("Convolution", "int8", "sm80_xmma_fprop")
        assert row.output == "fp16 1 x 16 x 8 x 8"
        assert report.to_json()["rows"][0]["weight_bytes"] == 2304

    @pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["conv1", "conv2"]}', '{"Layers": 3}', "[]"])
    def test_an_inspector_without_details(self, text):
        with pytest.raises(EngineError, match=r"tells no layers .* build the engine again"):
            report_from_inspector(text)
