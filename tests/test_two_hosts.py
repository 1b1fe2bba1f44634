"""Two hosts of one rank each, as network namespaces of this machine joined by a cable."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.bench import LIMIT_S, ROOT, Bench, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NAME = "two_hosts"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """A namespace, and the torchrun that runs in it."""

    number: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"ssd{os.getpid()}-{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def cable(self) -> str:
        return f"ssd{self.number}"

    @property
    def log(self) -> str:
        return f"{self.name}.txt"

    def launch(self, bench: Bench) -> subprocess.Popen[bytes]:
        """Run torchrun on this host; the first host keeps the rendezvous."""
        script = bench.train_command(
            NAME, "data.batch_size=2", "checkpoint.every_steps=3", "training.hang_timeout_minutes=0.2"
        )[1:]
        torchrun = [
            *(bench.command("x")[0], "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
            *("--max-restarts=5", "--rdzv-backend=c10d"),
            *("--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=two"),
            f"--rdzv-conf=is_host={self.number == 1},join_timeout=200,last_call_timeout=1",
            f"--local-addr={self.address}",
        ]
        with (bench.folder / self.log).open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *torchrun, *script],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env=os.environ
                | {
                    "GLOO_SOCKET_IFNAME": self.cable,
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                    # As torchrun sets it for the two ranks on one host: threads change the order of sums.
                    "OMP_NUM_THREADS": "1",
                },
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """End everything that runs on this host, without a word."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs the superuser and iproute2 to make network namespaces")
    pair = (Host(1), Host(2))
    try:
        ip("netns", "add", pair[0].name)
        ip("netns", "add", pair[1].name)
        one, two = pair
        ip("link", "add", one.cable, "netns", one.name, "type", "veth", "peer", two.cable, "netns", two.name)
    except subprocess.CalledProcessError as error:
        remove(pair)
        pytest.skip(f"network namespaces can't be made here: {error.stderr}")
    for host in pair:
        ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
        ip("-n", host.name, "link", "set", host.cable, "up")
        ip("-n", host.name, "link", "set", "lo", "up")
    try:
        yield pair
    finally:
        for host in pair:
            host.kill()
        remove(pair)


def remove(hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def test_a_cut_cable_and_a_killed_host_that_comes_back_change_nothing(hosts: tuple[Host, Host], bench: Bench):
    one, two = hosts
    first, second = one.launch(bench), two.launch(bench)
    wait_for(bench.checkpoint(NAME, 3), first, second)
    ip("-n", two.name, "link", "set", two.cable, "down")
    time.sleep(5)
    ip("-n", two.name, "link", "set", two.cable, "up")

    wait_for(bench.checkpoint(NAME, 6), first, second)
    two.kill()
    second = two.launch(bench)
    assert first.wait(LIMIT_S) == 0, (bench.folder / one.log).read_text()[-3000:]
    second.wait(LIMIT_S)  # its status hangs on whether the first one's rendezvous outlived it
    bench.assert_ended_as(bench.uninterrupted(2), NAME)
