"""The fingerprint of a machine, on recorded file systems."""

import json
import subprocess
import sys

from grd_edge.machine import commit_of, cpu_name, fingerprint, source_commit, usable_cores


def recorded(root, **files):
    for path, text in files.items():
        place = root / path.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return root


def test_a_fingerprint_of_this_machine():
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == usable_cores() >= 1 and f"{found['cpu']}, {found['cores']} cores" == cpu_name()
    assert found["memory_bytes"] > 1 << 28
    assert found["versions"]["grd-edge"] and found["versions"]["openvino"] and found["versions"]["python"]
    assert found["commit"] == source_commit()


def test_files_of_the_system_are_read(tmp_path):
    cpuinfo = "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni fma avx512_vnnix\n\nmodel name : other\n"
    recorded(
        tmp_path,
        proc__cpuinfo=cpuinfo,
        proc__meminfo="MemTotal:       1024 kB\nMemFree: 1 kB\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="powersave\n",
        **{"sys__fs__cgroup__cpu.max": "150000 100000\n", "sys__fs__cgroup__memory.max": "1073741824\n"},
    )
    found = fingerprint(tmp_path)
    assert found["cpu"] == "Some CPU @ 2 GHz"
    assert found["flags"] == ["avx2", "fma", "avx512_vnni"]
    assert (found["memory_bytes"], found["governor"], found["board"]) == (1 << 20, "powersave", None)
    assert found["limits"] == {"cpus": 1.5, "memory_bytes": 1 << 30}


def test_arm_boards_and_limits_of_version_1(tmp_path):
    recorded(
        tmp_path,
        proc__cpuinfo="processor : 0\nFeatures\t: fp asimd asimddp i8mm\n",
        **{
            "proc__device-tree__model": "Jetson AGX Orin\0",
            "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1\n",
            "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    found = fingerprint(tmp_path)
    assert (found["flags"], found["board"]) == (["asimd", "asimddp", "i8mm"], "Jetson AGX Orin")
    assert found["limits"] == {"cpus": None, "memory_bytes": None}


def test_a_machine_that_tells_nothing(tmp_path):
    found = fingerprint(tmp_path)
    assert found["cpu"] and found["flags"] == []
    assert found["memory_bytes"] is None and found["governor"] is None
    assert found["limits"] == {"cpus": None, "memory_bytes": None}


def test_it_is_taken_without_the_training_stack():
    code = "import sys, grd_edge.machine as m; m.fingerprint(); print({'torch', 'onnx', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_commit_is_that_of_the_tree_whatever_git_was_told(tmp_path, monkeypatch):
    def git(*words):
        given = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *given, "-C", tmp_path, *words], capture_output=True, text=True, check=True
        ).stdout

    assert commit_of(tmp_path) is None
    git("init", "--quiet")
    assert commit_of(tmp_path) is None  # nothing was committed
    (tmp_path / "file").write_text("a", encoding="utf-8")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as a hook of another repository finds it
    assert commit_of(tmp_path) == head
    (tmp_path / "file").write_text("b", encoding="utf-8")
    assert commit_of(tmp_path) == head + "+changes"
