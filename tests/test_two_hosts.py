"""Two hosts with one rank each: network namespaces on this machine, connected by a virtual cable."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.bench import LIMIT_S, ROOT, Bench, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NAME = "two_hosts"
FIRST, SECOND = HOSTS = (f"ssd{os.getpid()}-1", f"ssd{os.getpid()}-2")
CABLE = "ssd0"  # the name of its end on each host


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def launch(host: str, bench: Bench) -> subprocess.Popen[bytes]:
    """Run torchrun on a host; the first host runs the rendezvous."""
    number = HOSTS.index(host) + 1
    python, *script = bench.train_command(
        NAME, "data.batch_size=2", "checkpoint.every_steps=3", "training.hang_timeout_minutes=0.2"
    )
    torchrun = [
        *("ip", "netns", "exec", host, python, "-m", "torch.distributed.run", "--nnodes=2"),
        *("--nproc_per_node=1", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=two"),
        *("--rdzv-endpoint=10.77.0.1:29400", f"--local-addr=10.77.0.{number}"),
        f"--rdzv-conf=is_host={number == 1},join_timeout=200,last_call_timeout=1",
    ]
    # As torchrun sets it for two ranks on one host; the number of threads changes the order of sums.
    variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE}
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with (bench.folder / f"{host}.txt").open("ab") as output:
        return subprocess.Popen(
            [*torchrun, *script], cwd=ROOT, stdout=output, stderr=output, env=os.environ | variables
        )


def kill(host: str) -> None:
    """Kill every process on this host, without warning."""
    for pid in ip("netns", "pids", host).split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def _hosts() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs the superuser and iproute2 to make network namespaces")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", CABLE, "netns", FIRST, "type", "veth", "peer", CABLE, "netns", SECOND)
        for number, host in enumerate(HOSTS, start=1):
            ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", CABLE)
            ip("-n", host, "link", "set", CABLE, "up")
            ip("-n", host, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces can't be made here: {error.stderr}")
    else:
        yield
        for host in HOSTS:
            kill(host)
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


@pytest.mark.usefixtures("_hosts")
def test_a_cut_cable_and_a_killed_host_that_comes_back_change_nothing(bench: Bench):
    first, second = launch(FIRST, bench), launch(SECOND, bench)
    wait_for(bench.checkpoint(NAME, 3), first, second)
    ip("-n", SECOND, "link", "set", CABLE, "down")
    time.sleep(5)
    ip("-n", SECOND, "link", "set", CABLE, "up")

    wait_for(bench.checkpoint(NAME, 6), first, second)
    kill(SECOND)
    second.wait()
    second = launch(SECOND, bench)
    assert first.wait(LIMIT_S) == 0, (bench.folder / f"{FIRST}.txt").read_text()[-3000:]
    second.wait(LIMIT_S)  # its status depends on whether the first host's rendezvous outlived it
    bench.assert_ended_as(bench.uninterrupted(2), NAME)
