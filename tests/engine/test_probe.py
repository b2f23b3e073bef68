"""`doctor --target` on recorded machines: Jetson Orin with JetPack 6 and 7, Thor, a workstation, and none of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from grd_edge.cli import app
from grd_edge.engine import probe
from grd_edge.engine.probe import FAILS, NOTE, OK, Machine, checklist
from grd_edge.targets import target_named

GIB = 1 << 30
# As such machines print them.
ORIN_NX_6 = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun 16 16:07:13 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
    "(buildbrain@mobile-u64-6336-d8000)  Tue Jan  7 17:35:12 PST 2025\nGCC version:  collect2\n",
    "proc/meminfo": "MemTotal:       15993224 kB\nMemFree:          481234 kB\nMemAvailable:   12582912 kB\n",
    "var/lib/dpkg/status": "Package: nano\nStatus: install ok installed\nVersion: 6.2-1\n\n"
    "Package: nvidia-jetpack\nStatus: install ok installed\nSource: nvidia-jetpack (6.2.1)\nVersion: 6.2.1+b38\n"
    "Architecture: arm64\n\nPackage: nvidia-jetpack-dev\nVersion: 9\n",
}
ORIN_NX_6_PRINTS = {
    "nvpmodel -q": "NV Power Mode: MAXN_SUPER\n2\n",
    "jetson_clocks --show": """SOC family:tegra234  Machine:NVIDIA Jetson Orin NX Engineering Reference Developer Kit
Online CPUs: 0-1
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1510400 IdleStates: WFI=1 c7=1 
cpu1:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1497600 IdleStates: WFI=1 c7=1 
GPU MinFreq=306000000 MaxFreq=624750000 CurrentFreq=306000000
Active GPU TPCs: 2
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0
NV Power Mode: MAXN_SUPER
""",
}
AGX_ORIN_7 = {
    **ORIN_NX_6,
    "etc/nv_tegra_release": "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 7 05:54:22 AM UTC 2026\n# KERNEL_VARIANT: oot\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "var/lib/dpkg/status": "",
}
THOR = {
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, "
    "DATE: Thu Sep 25 22:47:11 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3971-0089+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "proc/meminfo": "MemAvailable:   125829120 kB\n",
}
THOR_PRINTS = {
    "nvpmodel -q": "NV Power Mode: 120W\n1\n",
    "jetson_clocks --show": """SOC family:tegra264  Machine:NVIDIA Jetson AGX Thor Developer Kit
Online CPUs: 0-1, Offline CPUs:
cpu0:  Governor=schedutil MinFreq=2601000 MaxFreq=2601000 CurrentFreq=2601000 IdleStates: WFI=0 cc7=0
cpu1:  Governor=schedutil MinFreq=2601000 MaxFreq=2601000 CurrentFreq=2601000 IdleStates: WFI=0 cc7=0
gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000
gpu-nvd-0 MinFreq=1692000000 MaxFreq=1692000000 CurrentFreq=1692000000
EMC MinFreq=665600000 MaxFreq=4266000000 CurrentFreq=4266000000 FreqOverride=1
PVA0_VPS0: Online=0 MinFreq=0 MaxFreq=1215000000 CurrentFreq=1215000000
NV Power Mode: 120W
""",
}
WORKSTATION = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Wed Jan 22 2025\n",
    "proc/meminfo": "MemAvailable:   4194304 kB\n",
}


class Driver:
    """`libcuda.so.1`."""

    def __init__(self, name, capability, version=12060) -> None:
        self.name, self.capability, self.version = name, capability, version

    def cuInit(self, flags):
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuDeviceGet(self, device, index):
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[attribute - 75]
        return 0


def gone(name):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The points of a target on a machine, by name."""

    def ask(target, files, *, prints=None, driver=None, tensorrt="", arch="aarch64", backend=False, cuda=True, free=9):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        libraries = tmp_path / "lib"
        libraries.mkdir()
        if backend:
            (libraries / "libgrd_backend_tensorrt.so").write_bytes(b"")
            (libraries / "libgrd_edge_cuda.so").write_bytes(b"")
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=tensorrt) if tensorrt else None)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", SimpleNamespace() if cuda else None)
        monkeypatch.setitem(sys.modules, "pycuda", None)
        machine = Machine(
            root=tmp_path,
            architecture=arch,
            run=lambda command: (prints or {}).get(" ".join(command), "Error: [Errno 2] No such file or directory"),
            load=(lambda name: driver) if driver else gone,
            libraries=libraries,
            free_disk=lambda: free * GIB,
        )
        items = checklist(target_named(target), machine)
        assert len({item.name for item in items}) == len(items)
        return {item.name: item for item in items}

    return ask


def states(items, state):
    return {name for name, item in items.items() if item.state == state}


ORIN = Driver("Orin", (8, 7))


def test_orin_with_jetpack_6(asked):
    items = asked("jetson-orin", ORIN_NX_6, prints=ORIN_NX_6_PRINTS, driver=ORIN, tensorrt="10.3.0", backend=True)
    assert states(items, FAILS) == set()
    assert states(items, NOTE) == {"clocks"}
    assert str(items["machine"]) == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert str(items["JetPack"]) == "JetPack 6.2.1+b38, Jetson Linux 36.4.4"
    assert str(items["driver"]) == "540.4.0, for CUDA 12.6"
    assert str(items["GPU"]) == "Orin, compute capability 8.7"
    assert str(items["tensorrt for Python"]) == "10.3.0"
    assert str(items["DLA"]) == "TensorRT 10.3.0 builds for it"
    assert str(items["power mode"]) == "MAXN_SUPER"
    assert str(items["clocks"]).endswith("lock them with: sudo jetson_clocks")
    assert str(items["free memory"]) == "12.0 GiB"


@pytest.mark.parametrize(
    "version, model, dla",
    [
        ("10.7.0.23", "AGX Orin", OK),
        ("10.13.3.9", "AGX Orin", NOTE),
        ("11.4.0.1", "AGX Orin", NOTE),
        ("11.4.1.2", "AGX Orin", OK),
        ("11.4.1.2", "Orin NX", NOTE),
    ],
)
def test_releases_that_know_the_dla(asked, version, model, dla):
    files = AGX_ORIN_7 if model == "AGX Orin" else ORIN_NX_6
    items = asked("jetson-orin", files, driver=ORIN, tensorrt=version)
    assert items["DLA"].state == dla
    assert ("10.3 to 10.7 do, and on AGX Orin 11.4.1" in str(items["DLA"])) == (dla == NOTE)


def test_orin_with_jetpack_7(asked):
    items = asked("jetson-orin", AGX_ORIN_7, driver=Driver("Orin", (8, 7), 13020), tensorrt="11.4.1")
    assert states(items, FAILS) == set()
    assert str(items["JetPack"]) == "JetPack 7, Jetson Linux 39.2.1"
    assert items["driver"].found == "540.4.0, for CUDA 13.2"
    assert items["power mode"].way_out == items["clocks"].way_out == "run the doctor with sudo"
    assert "engines run in Python" in str(items["native backend"])


def test_orin_nano_has_no_dla(asked):
    nano = {
        **ORIN_NX_6,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    }
    assert str(asked("jetson-orin", nano, driver=ORIN, tensorrt="10.3.0")["DLA"]) == "Orin Nano has none"


def test_tensorrt_of_another_python(asked, tmp_path):
    (tmp_path / "usr/lib/python3.10/dist-packages/tensorrt").mkdir(parents=True)
    items = asked("jetson-orin", ORIN_NX_6, driver=ORIN)
    assert items["tensorrt for Python"].state == FAILS
    assert "the system's is for python3.10 and this is Python 3." in items["tensorrt for Python"].way_out
    assert str(items["DLA"]) == "NOTE: TensorRT is not there to ask"


def test_the_backend_in_cpp_needs_no_package(asked):
    items = asked("jetson-orin", ORIN_NX_6, driver=ORIN, backend=True, cuda=False)
    assert states(items, FAILS) == set()
    assert {"tensorrt for Python", "CUDA for Python"} <= states(items, NOTE)
    assert str(items["native backend"]) == "libgrd_backend_tensorrt.so"


def test_thor(asked):
    thor = Driver("NVIDIA Thor", (11, 0), 13000)
    items = asked("jetson-thor", THOR, prints=THOR_PRINTS, driver=thor, tensorrt="10.13.3.9", free=1)
    assert states(items, FAILS) == set()
    assert str(items["JetPack"]) == "JetPack 7, Jetson Linux 38.2.2"
    assert str(items["clocks"]) == "locked at the mode's maximum"
    assert "120W, which caps the clocks; the modes are in: grep POWER_MODEL /etc/nvpmodel.conf" in str(
        items["power mode"]
    )
    assert "1.0 GiB of 2 GiB; free space" in str(items["free disk"])
    assert "DLA" not in items


@pytest.mark.parametrize(
    "target, changes, name, words",
    [
        ("jetson-thor", {}, "machine", "Orin NX .*, which is no Jetson Thor .*choose the target of this machine"),
        ("jetson-orin", {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1"}, "JetPack", "5.*flash JetPack 6"),
        ("jetson-orin", {"etc/nv_tegra_release": ""}, "JetPack", "names no release of Jetson Linux; flash JetPack 6"),
        ("jetson-orin", {"etc/nv_tegra_release": "\0\xff"}, "JetPack", "names no release"),
    ],
)
def test_another_board_or_system(asked, target, changes, name, words):
    files = {**ORIN_NX_6, "var/lib/dpkg/status": "", **changes}
    items = asked(target, files, driver=ORIN, tensorrt="10.3.0")
    assert items[name].state == FAILS
    assert re.search(words, str(items[name]))


def test_a_release_to_come_is_a_note(asked):
    files = {**AGX_ORIN_7, "etc/nv_tegra_release": "# R41 (release), REVISION: 1.0, GCID: 1"}
    item = asked("jetson-orin", files, driver=ORIN, tensorrt="11.9.0")["JetPack"]
    assert (item.state, "of an unknown release, Jetson Linux 41.1.0" in item.found) == (NOTE, True)


@pytest.mark.parametrize(
    "target, capability, state",
    [
        ("rtx-ada", (8, 9), OK),
        ("rtx-ada", (8, 6), FAILS),
        ("rtx", (8, 6), OK),
        ("rtx", (7, 5), FAILS),
        ("rtx-turing", (7, 5), OK),
        ("trt", (9, 0), OK),
        ("trt", (7, 0), FAILS),
    ],
)
def test_which_gpu_fits(asked, target, capability, state):
    driver = Driver("NVIDIA Something", capability, 13000)
    version = "1.7.1.116" if target.startswith("rtx") else "11.1.0"
    items = asked(target, WORKSTATION, driver=driver, tensorrt=version, arch="x86_64")
    assert items["GPU"].state == state
    assert states(items, FAILS) == ({"GPU"} if state == FAILS else set())
    assert items["driver"].found == "570.86.15, for CUDA 13.0"
    assert "4.0 GiB of 10 GiB; builds of large models may fail" in str(items["free memory"])
    assert not {"power mode", "clocks", "DLA", "JetPack"} & set(items)


def test_a_release_of_tensorrt_that_is_not_known(asked):
    item = asked("trt", WORKSTATION, driver=Driver("A", (8, 9)), tensorrt="8.6.1", arch="x86_64")["tensorrt for Python"]
    assert (item.state, item.way_out) == (FAILS, "install one of these")


def test_nothing_there(asked):
    items = asked("rtx-ada", {}, arch="x86_64", cuda=False)
    assert {"driver", "GPU", "tensorrt_rtx for Python", "CUDA for Python"} == states(items, FAILS)
    assert "cannot open shared object file" in str(items["driver"])
    assert "pip install 'grd-edge[gpu]'" in items["CUDA for Python"].way_out


def test_a_driver_that_tells_nothing():
    assert probe._driver(Machine(load=lambda name: Driver("x", (8, 9), 0))).state == FAILS


def test_a_jetson_needs_no_training_stack():
    code = "import sys, grd_edge.engine.probe, grd_edge.engine.tensorrt; "
    code += "print([m for m in ('torch', 'onnx', 'pydantic', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["doctor", *arguments])

    def test_a_machine_that_cannot(self, monkeypatch):
        monkeypatch.setattr(probe, "Machine", lambda: Machine(load=gone))
        shown = self.run("--target", "jetson-orin")
        assert shown.exit_code == 3
        assert "engines of jetson-orin cannot run here" in " ".join(shown.stdout.replace("│", " ").split())
        told = json.loads(self.run("--target", "rtx-ada", "--json").stdout)
        assert (told["target"], told["verdict"]) == ("rtx-ada", "engines of rtx-ada cannot run here; see above")
        driver = next(item for item in told["items"] if item["name"] == "driver")
        assert driver["state"] == "fails" and driver["way_out"]

    def test_a_machine_that_can(self, monkeypatch):
        monkeypatch.setattr(probe, "checklist", lambda target, machine: [probe.Item("all", OK, "there")])
        told = self.run("--target", "rtx-ada", "--json")
        assert (told.exit_code, json.loads(told.stdout)["verdict"]) == (0, "engines of rtx-ada can run here")

    def test_a_target_there_is_not(self):
        found = self.run("--target", "rtxada")
        assert "did you mean 'rtx-ada'?" in str(found.exception)
