"""Measuring through a real sshd: what comes back, what goes wrong, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import bench_models
import pytest
import sshd
from click.testing import CliRunner
from toolchain.bench.devices import agent as agent_module
from toolchain.bench.devices import naming, ssh
from toolchain.bench.plan import Effort, plan_bench, read_interfaces

from toolchain.cli import cli
from toolchain.errors import BenchError, ModelFileError

REASON = sshd.missing()
needs_sshd = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def started():
    with sshd.running() as server:
        yield server


@pytest.fixture
def server(started, monkeypatch):
    """The server with its usual configuration, and a check that nothing is left on it."""
    started.write_config()
    monkeypatch.setenv("PATH", f"{started.commands}:{os.environ['PATH']}")
    yield started
    wait_until(lambda: not started.left_running() and not list(started.temporary.iterdir()), "the device is clean")


def wait_until(condition, what, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not after {timeout_s} s: {what}"
        time.sleep(0.05)


def plan(paths, *, processes=2, seconds=0.2):
    effort = Effort(processes=processes, seconds=seconds)
    return plan_bench(read_interfaces(paths), device="ssh", steps=[1, 5], batches=[1], threads=[1], effort=effort)


def refusal(address):
    with pytest.raises(BenchError) as error, ssh.Connection(naming.parse_address(address)) as connection:
        connection.check()
    return str(error.value)


@needs_sshd
def test_the_table_of_a_device_behind_ssh_is_measured_there(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench_models.lstm(tmp_path / "model.onnx", hidden=128)
    bench_models.lstm(tmp_path / "model.shrunk.onnx", hidden=8)
    arguments = ["--device", server.address(), "--processes", "5", "--seconds", "0.5", "--json", "r.json"]
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 0, result.output
    assert "model.shrunk.onnx ran " in result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert {row["method"] for row in document["rows"]} == {"measured-ssh"}
    assert {row["device"] for row in document["rows"]} == {server.address()}
    assert all(len(row["samples_s"]) == 5 for row in document["rows"])
    assert document["machine"]["address"] == f"ssh://{server.user}@127.0.0.1:{server.port}"
    assert document["machine"]["emulated"] is False
    assert document["machine"]["onnxruntime"]
    assert "rooflines" not in document, "this machine's limits are not those of the device"
    assert {row["limit_share"] for row in document["rows"]} == {None}


@needs_sshd
def test_each_content_is_sent_once(server, tmp_path, monkeypatch):
    first = bench_models.lstm(tmp_path / "first.onnx")
    second = bench_models.lstm(tmp_path / "second.onnx")
    assert first.read_bytes() == second.read_bytes()
    sent = []
    put = ssh.Connection.put

    def watch(connection, path, sha256):
        before = len(connection.sent)
        put(connection, path, sha256)
        sent.extend([path.name] * (len(connection.sent) - before))

    monkeypatch.setattr(ssh.Connection, "put", watch)
    seen = []
    measured = ssh.measure_through_ssh(
        plan([first, second]), naming.parse_address(server.address()), lambda *progress: seen.append(progress)
    )
    assert sent == ["runner.py", "first.onnx"]
    assert len(measured.runs) == 2 * 2 * 2  # models x cases x processes
    assert [done for done, total, _ in seen if total] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (4, 4, "done")


@needs_sshd
def test_external_weights_come_along(server, tmp_path):
    import onnx

    path = bench_models.lstm(tmp_path / "inside.onnx", hidden=64)
    onnx.save_model(
        onnx.load(path), tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    address = naming.parse_address(server.address())
    assert ssh.measure_through_ssh(plan([tmp_path / "outside.onnx"]), address, lambda *progress: None).runs


@needs_sshd
def test_an_unknown_host_key_is_refused(server):
    empty = server.folder / "nobody_known"
    empty.write_text("")
    server.write_config(known_hosts=empty)
    where = f"{server.user}@127.0.0.1"
    assert refusal(server.address()) == (
        f"device 'ssh://{where}:{server.port}': its host key is not known (Host key verification failed); expected to "
        f"log in without a question. Connect once with `ssh -p {server.port} {where}`, compare the fingerprint, and "
        "accept it."
    )
    assert empty.read_text() == ""


@needs_sshd
def test_a_changed_host_key_is_refused(server):
    other = server.folder / "others_known"
    words = (server.folder / "stranger.pub").read_text().split()[:2]
    other.write_text(f"[127.0.0.1]:{server.port} {' '.join(words)}\n")
    server.write_config(known_hosts=other)
    text = refusal(server.address())
    assert "its host key is not the known one" in text
    assert "ssh-keygen -R" in text


@needs_sshd
def test_a_refused_key_is_named_and_no_password_is_asked_for(server):
    server.write_config(identity=server.folder / "stranger")
    text = refusal(server.address())
    assert ": it refuses this user or key (" in text
    assert "Permission denied (publickey)" in text
    assert "`ssh-copy-id`" in text


@needs_sshd
def test_a_dead_port_is_named(server):
    assert "nothing listens on that port" in refusal(f"ssh://{server.user}@127.0.0.1:1{server.python}")


@needs_sshd
def test_a_device_without_python_is_named(server):
    text = refusal(server.address(server.folder / "no_python"))
    assert f"it has no {server.folder}/no_python (" in text
    assert "expected Python 3.9 or newer" in text


@needs_sshd
def test_a_device_without_onnxruntime_is_named(server, tmp_path):
    """Its Python finds numpy, and nothing else: a folder with one link."""
    import numpy

    only_numpy = server.folder / "only_numpy"
    only_numpy.mkdir(exist_ok=True)
    for name in ("numpy", "numpy.libs"):
        source = next(
            (os.path.join(path, name) for path in sshd.PACKAGES if os.path.isdir(os.path.join(path, name))), None
        )
        if source is not None and not (only_numpy / name).is_symlink():
            (only_numpy / name).symlink_to(source)
    assert numpy.__file__
    python = server.write_python("python_without_onnxruntime", packages=[str(only_numpy)])
    text = refusal(server.address(python))
    assert "has no onnxruntime (ModuleNotFoundError: No module named 'onnxruntime')" in text
    assert "-m pip install onnxruntime` there" in text


@needs_sshd
def test_a_device_without_numpy_is_named(server):
    text = refusal(server.address(server.write_python("bare_python", packages=[])))
    assert "has no numpy (ModuleNotFoundError: No module named 'numpy')" in text


@needs_sshd
def test_an_emulated_device_is_refused(server, monkeypatch, tmp_path):
    """The runner that is sent says what it would say under qemu-user: aarch64 by name, x86-64 by its ELF header."""
    lying = tmp_path / "runner.py"
    lying.write_text(ssh.RUNNER.read_text().replace("platform.machine()", "'aarch64'").replace(
        "return int(machine)", "return 62"
    ))  # fmt: skip
    monkeypatch.setattr(ssh, "RUNNER", lying)
    assert "its Python says aarch64 but runs under emulation (ELF machine 62)" in refusal(server.address())


@needs_sshd
def test_a_connection_that_is_cut_in_the_middle_fails_clearly_and_leaves_nothing(server, tmp_path):
    path = bench_models.lstm(tmp_path / "model.onnx")

    def cut(done, total, what):
        if done == 2:
            assert server.left_running(), "the runner should be at work"
            for session in server.sessions():
                os.kill(session, 9)

    begin = time.monotonic()
    with pytest.raises(BenchError, match="the connection was cut in the middle") as error:
        ssh.measure_through_ssh(plan([path], processes=50, seconds=60), naming.parse_address(server.address()), cut)
    assert time.monotonic() - begin < 30
    assert "Nothing is left running there. Try again" in str(error.value)


@needs_sshd
def test_an_interrupted_measurement_leaves_nothing(server, tmp_path):
    path = bench_models.lstm(tmp_path / "model.onnx")

    def interrupt(done, total, what):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ssh.measure_through_ssh(
            plan([path], processes=50, seconds=60), naming.parse_address(server.address()), interrupt
        )


@needs_sshd
def test_a_model_that_the_device_does_not_load_is_named(server, tmp_path):
    import onnx

    path = bench_models.lstm(tmp_path / "model.onnx")
    proto = onnx.load(path)
    proto.graph.node[0].domain = "of.nobody"
    proto.opset_import.add(domain="of.nobody", version=1)
    onnx.save_model(proto, path)
    with pytest.raises(ModelFileError, match="its ONNX Runtime does not load a model") as error:
        ssh.measure_through_ssh(plan([path]), naming.parse_address(server.address()), lambda *progress: None)
    assert "model.onnx: load: " in str(error.value)


def start_agent(tmp_path, silence_s):
    source = ssh.AGENT.read_text()
    assert f"SILENCE_S = {agent_module.SILENCE_S}" in source
    text = source.replace(f"SILENCE_S = {agent_module.SILENCE_S}", f"SILENCE_S = {silence_s}").encode()
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", ssh.BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    process.stdin.write(f"{len(text)}\n".encode() + text)
    process.stdin.flush()
    wait_until(lambda: list(tmp_path.iterdir()), "the agent's folder is there")
    return process


def test_an_agent_that_hears_nothing_ends_by_itself(tmp_path):
    process = start_agent(tmp_path, silence_s=0.5)
    assert process.wait(timeout=10) == 0
    assert not list(tmp_path.iterdir())


def test_an_agent_lives_as_long_as_it_hears_signs_of_life(tmp_path):
    process = start_agent(tmp_path, silence_s=1.0)
    for _ in range(8):
        time.sleep(0.25)
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    assert not list(tmp_path.iterdir())


def test_a_terminated_agent_removes_its_folder(tmp_path):
    process = start_agent(tmp_path, silence_s=60.0)
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_not_used(tmp_path):
    process = start_agent(tmp_path, silence_s=60.0)
    request = json.dumps({"do": "put", "sha256": "0" * 64, "size": 3}).encode()
    answer, _ = process.communicate(request + b"\nabc", timeout=10)
    assert json.loads(answer) == {"error": "a file arrived damaged"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "destination"),
    [
        ("ssh://pi@board", ["pi@board"]),
        ("ssh://board:2222", ["-p", "2222", "board"]),
        ("ssh://pi@[fe80::1]:22/opt/venv/bin/python3", ["-p", "22", "pi@fe80::1"]),
    ],
)
def test_an_address_becomes_arguments_of_ssh(name, destination):
    command = ssh.ssh_command(naming.parse_address(name))
    assert command[-1 - len(destination) : -1] == destination
    assert "BatchMode=yes" in command
    assert "StrictHostKeyChecking=yes" in command
    python = "/opt/venv/bin/python3" if "venv" in name else "python3"
    assert command[-1].startswith(f"exec {python} -u -c '")


@pytest.mark.parametrize("name", [
    "ssh://", "ssh:board", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://board:0", "ssh://board:70000", "ssh://pi@board/$(id)",
    "ssh://pi@board;id", "ssh://pi:password@board",
])  # fmt: skip
def test_what_is_no_address_is_refused(name):
    with pytest.raises(BenchError) as error:
        naming.parse_address(name)
    assert str(error.value) == (
        f"device {name!r}: is not an address; expected ssh://[user@]host[:port][/path/of/python3]. Correct it."
    )


def test_the_reader_of_replies_passes_over_a_login_banner(tmp_path, monkeypatch):
    """A login script that prints would otherwise be taken for the agent's answer."""
    fake = tmp_path / "ssh"
    fake.write_text(f"#!/bin/sh\necho Welcome\necho 'to the board'\nexec {sys.executable} -u -c '{ssh.BOOTSTRAP}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with ssh.Connection(naming.parse_address("ssh://board")) as connection:
        assert connection.check()["onnxruntime"]
    assert threading.active_count() < 50
