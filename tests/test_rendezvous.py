"""Machines that wait for others in vain end in time, with a line that says what to do."""

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed
from torch.distributed import HashStore, ProcessGroupGloo, TCPStore

from lit_seq2seq.cli import main
from lit_seq2seq.cli.failures import explain
from tests.test_processes import free_port
from tests.tiny import write_recipe

HOST = "127.0.0.1"
OPTIONS = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=DDPStrategy"]
OPTIONS += ["--trainer.strategy.timeout=0:00:01"]
OTHERS = "see the output of the others; all machines need the same command, with the same trainer.num_nodes and "
MORE = "for more time give --trainer.strategy=DDPStrategy --trainer.strategy.timeout=1:00:00\n"


@pytest.fixture
def start(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Starts one machine of two, without the other, and returns what it says."""
    recipe = write_recipe(tmp_path)

    def run(node: int, port: int, address: str = HOST, **more: str) -> str:
        if distributed.is_initialized():  # Lightning leaves the group of an earlier test
            distributed.destroy_process_group()
        here = {"NODE_RANK": str(node), "MASTER_ADDR": address, "MASTER_PORT": str(port), **more}
        with mock.patch.dict(os.environ, here), mock.patch.object(rank_zero_only, "rank", node):
            assert main(["fit", "--config", str(recipe), *OPTIONS]) == 1
        return capsys.readouterr().err

    return run


def test_the_other_machine_never_comes(start):
    said = start(node=0, port=free_port())
    line = rf"error: process 0 of 2: 1 of 2 processes came within \d s: {OTHERS}trainer.devices; {MORE}"
    assert re.fullmatch(line, said[said.index("error: ") :])


def test_a_process_of_the_other_machine_ends_before_they_meet(start):
    """Both torchruns have come: the store is that of the first."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    said = start(0, store.port, TORCHELASTIC_RUN_ID="none", TORCHELASTIC_USE_AGENT_STORE="True", **ranks)
    assert f"error: process 0 of 2: another process did not answer within 1 s: {OTHERS}trainer.devices; {MORE}" in said


def test_the_first_machine_is_not_there(start):
    port = free_port()
    line = f"error: process 1 of 2: no answer from {HOST}, port {port}, within 1 s: start the first machine too, check "
    assert f"{line}MASTER_ADDR, MASTER_PORT and firewalls; {MORE}" in start(node=1, port=port)


def test_the_name_of_the_first_machine_is_unknown(start):
    said = start(node=1, port=free_port(), address="node0.invalid")
    line = "process 1 of 2: this machine knows no 'node0.invalid': set MASTER_ADDR (torchrun's --master-addr)"
    assert f"error: {line} to the first machine\n" in said


def test_the_port_is_taken(start):
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        said = start(node=0, port=port)
    line = f"port {port} is taken: set another MASTER_PORT (torchrun's --master-port), the same on all machines"
    assert f"error: process 0 of 2: {line}\n" in said


@pytest.mark.parametrize("receives", [True, False])
def test_a_process_that_answers_no_more(receives):
    store, wait = HashStore(), timedelta(seconds=3)
    with ThreadPoolExecutor(2) as pool:  # each waits for the other
        first, _ = pool.map(lambda rank: ProcessGroupGloo(store, rank, 2, wait), range(2))
    data = [torch.zeros(1_000_000)]
    with pytest.raises(RuntimeError) as error:
        (first.recv(data, 1, 0) if receives else first.allreduce(data)).wait()
    assert explain(error.value) == f"another process did not answer within 3 s: {OTHERS}trainer.devices; {MORE.strip()}"
