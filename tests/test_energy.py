"""Energy counters, on recorded file systems and a library that counts."""

import ctypes
import time

import pytest

from grd_edge.energy import NOT_TOLD, Counter, counters, spent


def missing(name):
    raise OSError(name)


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n", encoding="ascii")


def test_a_machine_without_counters_says_so(tmp_path):
    assert counters(tmp_path, missing) == ([], NOT_TOLD)


def test_packages_count_and_what_lies_inside_them_does_not(tmp_path):
    power = tmp_path / "sys/class/powercap"
    write(power / "intel-rapl:0", name="package-0", energy_uj=4_000_000, max_energy_range_uj=9_000_000)
    write(power / "intel-rapl:0:0", name="core", energy_uj=1_000_000, max_energy_range_uj=9_000_000)
    write(power / "intel-rapl:1", name="psys", energy_uj=1_000_000)
    found, why = counters(tmp_path, missing)
    assert [counter.name for counter in found] == ["RAPL package-0"] and why == ""

    def work(to):
        (power / "intel-rapl:0" / "energy_uj").write_text(str(to), encoding="ascii")

    used, seconds = spent(found, lambda: work(6_500_000))
    assert used == {"RAPL package-0": pytest.approx(2.5)} and seconds > 0
    used, _ = spent(found, lambda: work(500_000))  # it began again at 0
    assert used == {"RAPL package-0": pytest.approx(3)}


def test_the_rail_of_the_module_is_sampled(tmp_path):
    rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 2000, "in2_label": "VDD_CPU", "in2_input": 5000}
    write(tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3", **rails, curr2_input=1000, in7_label="sum")
    found, _ = counters(tmp_path, missing)
    assert [counter.name for counter in found] == ["rail VDD_IN"]
    used, seconds = spent(found, lambda: time.sleep(0.05))
    assert used["rail VDD_IN"] == pytest.approx(10 * seconds)


def test_a_gpu_counts_where_it_can(tmp_path):
    class Nvml:
        code = 0
        told = 5000

        def nvmlInit_v2(self):
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
            ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.told
            return self.code

    nvml = Nvml()
    found, _ = counters(tmp_path, lambda name: nvml)
    used, _ = spent(found, lambda: setattr(nvml, "told", 7000))
    assert used == {"NVML": pytest.approx(2)}
    assert counters(tmp_path, lambda name: nvml, gpu=False) == ([], NOT_TOLD)
    nvml.code = 3  # not supported
    assert counters(tmp_path, lambda name: nvml) == ([], NOT_TOLD)


def test_work_that_fails_ends_the_sampling():
    with pytest.raises(ZeroDivisionError):
        spent([Counter("rail", watts=lambda: 1.0)], lambda: 1 / 0)
