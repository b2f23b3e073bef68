"""Writes a header of classes that override every pure virtual function of TensorRT's interfaces with abort().

SPDX-License-Identifier: Apache-2.0

usage: stub_overrides.py FOLDER_OF_NVINFERIMPL_H OUTPUT
"""

import re
import sys
from pathlib import Path

WANTED = ("VRuntime", "VCudaEngine", "VExecutionContext", "VHostMemory", "VRuntimeConfig", "VRuntimeCache")


def main(folder: str, output: str) -> None:
    text = (Path(folder) / "NvInferImpl.h").read_text(encoding="utf-8")
    text = re.sub(r"//.*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
    lines = ["#include <NvInferRuntime.h>", "#include <cstdlib>", "namespace stub {", "using namespace nvinfer1;"]
    for name in WANTED:
        body = re.search(rf"class {name} : public VRoot\s*\{{(.*?)\n\}};", text, re.S)
        if body is None:
            continue
        lines.append(f"class {name} : public apiv::{name} {{\npublic:")
        for function in re.findall(r"virtual\s+([^;]*?)\s*=\s*0\s*;", body[1]):
            lines.append("    " + " ".join(function.split()) + " override { std::abort(); }")
        lines.append("};")
    Path(output).write_text("\n".join([*lines, "}", ""]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
